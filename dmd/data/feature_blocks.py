"""Groups blocks of features into repetitions, and checks that each repetition is complete."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmd.provenance import tensor_files

SHARED = ("features", "protocol", "num_samples", "labels", "network_calls")
COUNTS = ("num_samples", "repetition", "first_index", "count", "first_seed")  # of each block
OPTIONAL = ("clip",)  # shared, and None where no block has it


@dataclass(frozen=True)
class Repetition:
    """The blocks of one repetition, in order of their samples.

    Attributes:
        first_seed: seed of its first sample.
    """

    paths: list[Path]
    first_seed: int

    def blocks(self, *names: str) -> Iterator[list[Tensor]]:
        """Yields the named tensors of each block; only one block is in memory at a time."""
        for path in self.paths:
            yield tensor_files.load_some(path, *names)

    def load(self, *names: str) -> list[Tensor]:
        """The named tensors of all blocks, each concatenated over the samples."""
        return [torch.cat(parts) for parts in zip(*self.blocks(*names), strict=True)]

    def sums(self, *names: str) -> list[Tensor]:
        """The named tensors added over the blocks."""
        first, *others = self.paths
        totals = tensor_files.load_some(first, *names)
        for path in others:
            totals = [total + part for total, part in zip(totals, tensor_files.load_some(path, *names), strict=True)]
        return totals


def group(paths: Sequence[Path], *, reference_sha256: str) -> tuple[list[Repetition], dict[str, Any]]:
    """Sorts blocks of features into repetitions.

    Returns:
        The repetitions in order, and what they all share: features, protocol, num_samples, labels,
            network_calls, clip (None if no block has it).

    Raises:
        ValueError: no blocks, a block made with another reference, blocks that differ in what they should share,
            or a repetition with missing or duplicate samples.
    """
    if not paths:
        raise ValueError("there are no blocks of features to evaluate")
    blocks = sorted(((path, _facts(path)) for path in paths), key=_first_index)
    shared = {name: blocks[0][1][name] for name in SHARED} | {name: blocks[0][1].get(name) for name in OPTIONAL}
    grouped: dict[int, list[tuple[Path, dict[str, Any]]]] = {}
    for path, metadata in blocks:
        if metadata["inputs"]["reference"] != reference_sha256:
            raise ValueError(f"{path} was made with another reference file: run snakemake again")
        for name, value in shared.items():
            if metadata.get(name) != value:
                raise ValueError(f"{path} has {name} {metadata.get(name)}, but {blocks[0][0]} has {value}")
        grouped.setdefault(metadata["repetition"], []).append((path, metadata))
    return [_repetition(number, parts) for number, parts in sorted(grouped.items())], shared


def _facts(path: Path) -> dict[str, Any]:
    """The metadata of a block; ValueError if a key of a block is missing."""
    metadata = tensor_files.load_metadata(path)
    missing = [name for name in (*SHARED, "inputs") if name not in metadata]
    missing += [name for name in COUNTS if not isinstance(metadata.get(name), int)]
    if missing or not isinstance(metadata["inputs"], dict) or "reference" not in metadata["inputs"]:
        raise ValueError(f"{path} is no block of features: it lacks {', '.join(missing) or 'inputs.reference'}")
    return metadata


def _first_index(block: tuple[Path, dict[str, Any]]) -> int:
    return block[1]["first_index"]


def _repetition(number: int, blocks: list[tuple[Path, dict[str, Any]]]) -> Repetition:
    """One repetition, if its blocks follow each other without a gap and hold all of its samples."""
    num_samples = blocks[0][1]["num_samples"]
    expected = number * num_samples
    for path, metadata in blocks:
        if metadata["first_index"] != expected:
            raise ValueError(f"{path} begins at sample {metadata['first_index']}, expected {expected}")
        expected += metadata["count"]
    if expected != (number + 1) * num_samples:
        raise ValueError(
            f"{blocks[-1][0]}: repetition {number} ends before sample {expected}, but its {num_samples} samples end "
            f"before {(number + 1) * num_samples}"
        )
    return Repetition([path for path, _ in blocks], blocks[0][1]["first_seed"])
