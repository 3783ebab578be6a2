"""A CLIP text encoder with its tokenizer: prompts to text states."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dmd import torchvision_operators
from dmd.provenance import outside_files

SPECIAL = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
SPECIAL |= {"unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
ARGUMENTS: tuple[str, ...] = ("vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers")
ARGUMENTS += ("num_attention_heads", "max_position_embeddings", "hidden_act", "layer_norm_eps", "attention_dropout")
ARGUMENTS += ("pad_token_id", "bos_token_id", "eos_token_id")


class Encoded(NamedTuple):
    """Prompts as text states.

    Attributes:
        states: float32 (B, L, E), the last hidden states.
        num_tokens: int64 (B,), start and end included, before truncation.
        truncated: bool (B,): whether the prompt had more than L tokens, so that the last were dropped.
    """

    states: Tensor
    num_tokens: Tensor
    truncated: Tensor


class Text(nn.Module):
    """Prompts to text states as in the pipelines of Stable Diffusion: padded to a fixed length, without mask.

    Args:
        config: arguments of transformers' CLIPTextConfig; those not in `ARGUMENTS` are ignored.
        tokenizer: contents by name of vocab.json and merges.txt, and if present of special_tokens_map.json and
            tokenizer_config.json.

    Attributes:
        length, width: L and E of text states.

    Raises:
        ValueError: arguments that cannot be used, damaged files, or more tokens than the network has.
    """

    def __init__(self, *, config: Mapping[str, Any], tokenizer: Mapping[str, str]) -> None:
        super().__init__()
        torchvision_operators.ensure()
        from transformers import CLIPTextConfig, CLIPTextModel

        try:
            arguments = CLIPTextConfig(**{key: config[key] for key in ARGUMENTS if key in config})
            self.encoder: Any = CLIPTextModel(arguments)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"CLIPTextModel: {error}") from error
        self._tokenizer = clip_tokenizer(tokenizer)
        self.length, self.width = int(arguments.max_position_embeddings), int(arguments.hidden_size)
        if len(self._tokenizer) > arguments.vocab_size:
            raise ValueError(
                f"tokenizer: {len(self._tokenizer)} tokens, but the text encoder has {arguments.vocab_size}"
            )

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Encoded:
        """Text states of prompts, on the device of the weights; the other two fields on the CPU."""
        tokens = self._tokenizer(list(prompts), truncation=False, verbose=False).input_ids
        end, padding = self._tokenizer.eos_token_id, self._tokenizer.pad_token_id
        rows = [row if len(row) <= self.length else [*row[: self.length - 1], end] for row in tokens]
        rows = [row + [padding] * (self.length - len(row)) for row in rows]
        padded = torch.tensor(rows, dtype=torch.int64, device=self.encoder.embeddings.token_embedding.weight.device)
        states = self.encoder(padded).last_hidden_state.float()
        num = torch.tensor([len(row) for row in tokens], dtype=torch.int64)
        return Encoded(states, num, num > self.length)


def clip_tokenizer(texts: Mapping[str, str]) -> Any:
    """transformers' CLIPTokenizer, made from the contents of its files, which are given by name.

    Raises:
        ValueError: vocab.json or merges.txt is missing, or a file is damaged.
    """
    from transformers import CLIPTokenizer

    try:
        vocab = json.loads(texts["vocab.json"])
        lines = [line for line in texts["merges.txt"].splitlines() if line and not line.startswith("#version")]
        merges: Any = [tuple(line.split(" ")) for line in lines]
        tokens = dict(SPECIAL)
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            tokens |= {
                key: _content(value) for key, value in json.loads(texts.get(name, "{}")).items() if key in SPECIAL
            }
        if missing := sorted({token for token in tokens.values() if token not in vocab}):
            raise ValueError(f"vocab.json has no token {', '.join(missing)}")
        return CLIPTokenizer(vocab=vocab, merges=merges, **tokens)
    except Exception as error:  # also of the library's own parts, which raise many kinds
        raise ValueError(f"tokenizer: {outside_files.reason(error)}") from error


def _content(value: Any) -> Any:
    """The text of a special token, which may be a mapping."""
    return value["content"] if isinstance(value, dict) else value
