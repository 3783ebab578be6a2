"""Text states of items: which prompt an item has, and what the text encoder makes of it."""

from __future__ import annotations

from pathlib import Path

import torch

from dmd.cluster import reporting
from dmd.data.prompts import Prompts
from dmd.models import loading

BATCH_SIZE = 64  # prompts encoded at once


class Texts:
    """Prompts of a file with their encoder; item i has row i modulo the number of rows, whatever block it is in."""

    def __init__(self, prompts: Path, text_encoder: Path, device: torch.device, *, num: int) -> None:
        """Reads the encoder; `num` is the number of the last item to come, and one."""
        self._prompts, self._text = Prompts(prompts), loading.load_text(text_encoder).to(device)
        if num > len(self._prompts):
            there = len(self._prompts)
            reporting.log(f"{prompts} has {there} prompts: from item {there} on they come again")

    def of(self, indices: range) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Rows int64 (N,) of the items' prompts, their states float32 (N, L, E) on the CPU, and how many were cut.

        A prompt longer than the encoder reads loses its end; the encoder's batches are all of one size, so that the
        states of a prompt do not depend on its neighbours.
        """
        rows = [index % len(self._prompts) for index in indices]
        texts = self._prompts.rows(rows)
        states, num_truncated = [], 0
        for start in range(0, len(texts), BATCH_SIZE):
            chosen = texts[start : start + BATCH_SIZE]
            encoded = self._text.encode(chosen + [chosen[-1]] * (BATCH_SIZE - len(chosen)))
            states.append(encoded.states[: len(chosen)].float().cpu())
            num_truncated += int(encoded.truncated[: len(chosen)].sum())
        if num_truncated:
            reporting.log(f"{num_truncated} of {len(texts)} prompts are longer than the text encoder reads: cut")
        return torch.tensor(rows), torch.cat(states), num_truncated
