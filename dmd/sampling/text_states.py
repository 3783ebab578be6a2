"""Text states: the prompts of items, encoded by the text encoder."""

from __future__ import annotations

from pathlib import Path

import torch

from dmd.data.prompts import Prompts
from dmd.jobs import reporting
from dmd.models import loading

BATCH_SIZE = 64  # prompts encoded at once


class Texts:
    """The prompts of a file and a text encoder; item i has prompt i modulo the number of prompts."""

    def __init__(self, prompts: Path, text_encoder: Path, device: torch.device, *, num: int) -> None:
        """Loads the encoder, for items 0 .. num - 1."""
        self._prompts, self._text = Prompts(prompts), loading.load_text(text_encoder).to(device)
        if num > len(self._prompts):
            reporting.log(f"{prompts} has {len(self._prompts)} prompts: later items use them again")

    def encode(self, indices: range) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Rows int64 (N,) of the items' prompts, states float32 (N, L, E) on the CPU, and how many were truncated.

        All batches have the same size, so that the states of a prompt do not depend on the other prompts.
        """
        rows = [index % len(self._prompts) for index in indices]
        texts = self._prompts.rows(rows)
        states, num_truncated = [], 0
        for start in range(0, len(texts), BATCH_SIZE):
            batch = texts[start : start + BATCH_SIZE]
            encoded = self._text.encode(batch + [batch[-1]] * (BATCH_SIZE - len(batch)))
            states.append(encoded.states[: len(batch)].float().cpu())
            num_truncated += int(encoded.truncated[: len(batch)].sum())
        if num_truncated:
            reporting.log(f"{num_truncated} of {len(texts)} prompts are longer than the text encoder allows: truncated")
        return torch.tensor(rows), torch.cat(states), num_truncated
