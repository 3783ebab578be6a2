"""A vocabulary of byte pairs (Sennrich et al. 2016, arXiv 1508.07909) in the files of CLIP's tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable

from dmd import torchvision_operators

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"


def train(texts: Iterable[str], *, merges: int, length: int) -> dict[str, str]:
    """The files of a tokenizer by name, see `dmd.models.text_encoder.clip_tokenizer`.

    Args:
        texts: to learn from; their order does not matter.
        merges: most pairs that become a token, besides a token for each byte within and at the end of a word.
        length: most tokens of a text, with start and end.
    """
    torchvision_operators.ensure()
    from tokenizers import pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    found = _merges(CLIPTokenizer(), trainers, sorted(texts), letters, merges) if merges else []
    joined = [pair.replace(" ", "") for pair in found]
    names = dict.fromkeys([*letters, *(letter + WORD_END for letter in letters), *joined, START, END])
    tokens = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True, **tokens}
    return {
        "vocab.json": _json({name: number for number, name in enumerate(names)}),
        "merges.txt": "\n".join(["#version: 0.2", *found, ""]),
        "special_tokens_map.json": _json(tokens),
        "tokenizer_config.json": _json(config),
    }


def size(files: dict[str, str]) -> int:
    """The number of tokens of a tokenizer that `train` made; END is the last."""
    return len(json.loads(files["vocab.json"]))


def _merges(tokenizer: object, trainers: object, texts: list[str], letters: list[str], num: int) -> list[str]:
    """The pairs in order, two parts with a blank between them."""
    backend: object = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    trainer = trainers.BpeTrainer(  # type: ignore[attr-defined]
        vocab_size=num + 2 * len(letters),
        initial_alphabet=letters,
        end_of_word_suffix=WORD_END,
        special_tokens=[],
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)  # type: ignore[attr-defined]
    model = json.loads(backend.to_str())["model"]  # type: ignore[attr-defined]
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return pairs[:num]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1)
