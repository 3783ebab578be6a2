"""A CLIP text encoder with its tokenizer: prompts to text states."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dmd import torchvision_operators
from dmd.models import sizes
from dmd.provenance import outside_files

TOKENIZER_FILES: tuple[str, ...] = ("vocab.json", "merges.txt", "tokenizer.json")
TOKENIZER_FILES += ("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json")
ARGUMENTS: tuple[str, ...] = ("vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers")
ARGUMENTS += ("num_attention_heads", "max_position_embeddings", "hidden_act", "layer_norm_eps", "attention_dropout")
ARGUMENTS += ("pad_token_id", "bos_token_id", "eos_token_id")


class Encoded(NamedTuple):
    """Prompts as text states.

    Attributes:
        states: float32 (B, L, E), the last hidden states.
        truncated: bool (B,): whether the prompt had more than L tokens, so that the last were dropped.
    """

    states: Tensor
    truncated: Tensor


class Text(nn.Module):
    """Prompts to text states as in the pipelines of Stable Diffusion: padded to a fixed length, without mask.

    Args:
        config: arguments of transformers' CLIPTextConfig; those not in `ARGUMENTS` are ignored.
        tokenizer: contents by name of the files of the tokenizer, see `clip_tokenizer`.

    Attributes:
        length, width: L and E of text states.

    Raises:
        ValueError: arguments that cannot be used, damaged files, or more tokens than the network has.
    """

    def __init__(self, *, config: Mapping[str, Any], tokenizer: Mapping[str, str]) -> None:
        super().__init__()
        torchvision_operators.ensure()
        from transformers import CLIPTextConfig, CLIPTextModel

        given = {key: config[key] for key in ARGUMENTS if key in config}
        with sizes.making("CLIPTextModel", given):
            arguments = CLIPTextConfig(**given)
            self.encoder: Any = CLIPTextModel(arguments)
        self._tokenizer = clip_tokenizer(tokenizer)
        self.length, self.width = int(arguments.max_position_embeddings), int(arguments.hidden_size)
        if len(self._tokenizer) > arguments.vocab_size:
            raise ValueError(
                f"tokenizer: {len(self._tokenizer)} tokens, but the text encoder has {arguments.vocab_size}"
            )

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Encoded:
        """Text states of prompts, on the device of the weights; `truncated` on the CPU."""
        tokens = self._tokenizer(list(prompts), truncation=False, verbose=False).input_ids
        end, padding = self._tokenizer.eos_token_id, self._tokenizer.pad_token_id
        rows = [row if len(row) <= self.length else [*row[: self.length - 1], end] for row in tokens]
        rows = [row + [padding] * (self.length - len(row)) for row in rows]
        padded = torch.tensor(rows, dtype=torch.int64, device=self.encoder.embeddings.token_embedding.weight.device)
        states = self.encoder(padded).last_hidden_state.float()
        return Encoded(states, torch.tensor([len(row) > self.length for row in tokens]))


def clip_tokenizer(texts: Mapping[str, str]) -> Any:
    """transformers' CLIPTokenizer, with all tokens that were added to it.

    transformers reads the files itself, since several of them may define the same token, and one of them wins.

    Args:
        texts: contents by name of files in `TOKENIZER_FILES`: vocab.json and merges.txt, or tokenizer.json.

    Raises:
        ValueError: files are missing or damaged.
    """
    from transformers import CLIPTokenizer

    if "tokenizer.json" not in texts and not {"vocab.json", "merges.txt"} <= texts.keys():
        raise ValueError("tokenizer: vocab.json and merges.txt are missing, and tokenizer.json, too")
    with tempfile.TemporaryDirectory() as folder:
        for name in TOKENIZER_FILES:
            if name in texts:
                Path(folder, name).write_text(texts[name], encoding="utf-8")
        try:
            return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # the library raises anything for damaged files
            reason = outside_files.reason(error).replace(folder, "")
            raise ValueError(f"tokenizer cannot be read: {type(error).__name__}: {reason}") from error
