"""What a distillation keeps in memory, in bytes: counted, before it starts, on passes of one and two images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn

from dmd.methods.counting import carriers, kept_bytes, peak_bytes, trained
from dmd.methods.numbers import Numbers
from dmd.methods.optimiser import moment_bytes
from dmd.methods.regression import Chunked
from dmd.methods.share import BUCKET, Share

TEXT_LENGTH = 77  # tokens of CLIP's text encoders


@dataclass(frozen=True)
class Line:
    """Bytes of a pass over some images: `each` an image, and `once` (weights cast to bfloat16)."""

    each: int
    once: int

    def of(self, num: int) -> int:
        """Bytes of a pass over `num` images."""
        return self.once + num * self.each


@dataclass(frozen=True)
class Activations:
    """What a network holds: for the backward pass, the same with checkpointed blocks, and at most without gradient."""

    kept: Line
    checkpointed: Line
    working: Line


def activations(denoiser: nn.Module, shape: tuple[int, ...]) -> Activations:
    """Counts on real passes, on the denoiser's device and in its dtype; fake tensors do as well.

    Args:
        denoiser: with a `network` of blocks, in eval mode, neither compiled nor checkpointed.
        shape: (C, H, W) of an image.
    """
    found = []
    for num in (1, 2):
        given = _input(denoiser, shape, num)
        with trained(denoiser):
            found.append(kept_bytes(denoiser, lambda given=given: denoiser(*given)))  # type: ignore[misc]
    kept, checkpointed = (Line(two - one, max(2 * one - two, 0)) for one, two in zip(*found, strict=True))
    found_working = working(denoiser, shape)
    checkpointed = Line(checkpointed.each, max(checkpointed.once, found_working.once))  # of the forward pass
    return Activations(kept, checkpointed, found_working)


def working(denoiser: nn.Module, shape: tuple[int, ...]) -> Line:
    """What a pass without gradient holds at most; a denoiser without network holds next to nothing."""
    if next(denoiser.parameters(), None) is None:
        return Line(0, 0)
    one, two = (_working(denoiser, shape, num) for num in (1, 2))
    return Line(two - one, max(2 * one - two, 0))


def lpips_bytes(distance: object, shape: tuple[int, ...], num: int) -> int:
    """What a distance keeps of `num` images or latents, a chunk at a time: LPIPS, decoders; 0 for others."""
    if not isinstance(distance, Chunked):
        return 0
    like = next(chain(distance.buffers(), distance.parameters()))
    image = like.new_zeros((1, *shape)).requires_grad_()
    return min(num, distance.chunk) * kept_bytes(distance, lambda: distance.total(image, image.detach()))[0]


def distill_parts(
    numbers: Numbers, share: Share, *, teacher: int, trained: int, found: Activations, lpips: int
) -> dict[str, int]:
    """Bytes by purpose at the fullest moment of an update; working memory of kernels comes on top.

    Args:
        numbers: section `distill`.
        share: this process's part of a batch.
        teacher, trained: bytes of weights of the teacher, and of what each of generator and fake denoiser trains.
        found: of generator and fake denoiser.
        lpips: bytes LPIPS holds.
    """
    line = found.checkpointed if numbers.get("compute", {}).get("gradient_checkpointing") else found.kept
    matched, regressed = (
        share.largest(largest_batch(numbers, f"{loss}_batch_size")) for loss in ("matching", "regression")
    )
    shared = numbers["shared_noise"] and numbers["fake_score"]
    doubled = 1 if numbers.get("guidance", 1.0) == 1 else 2  # with and without the condition, in one pass

    def scored(num: int) -> int:
        """Bytes of generated images with their graph, and of the scores of them."""
        scores = found.working.of(doubled * num)
        return line.of(num) + (max(line.of(num), scores) if shared else scores)

    matching = scored(matched)
    regression = (line.of(regressed) + lpips) * bool(numbers["regression_weight"])
    kind = numbers.get("optimiser", {}).get("kind", "fused")
    if numbers.get("match_pairs") and regression:
        regression = max(regression, scored(regressed))
    parts = {
        "weights of teacher, generator, fake denoiser and moving average": teacher + 3 * trained,
        "moments of both optimisers": 2 * moment_bytes(trained, kind),
        "gradients": trained * (2 if shared else 1),
    }
    if numbers.get("compute", {}).get("shard_parameters"):  # the block that is whole for now comes on top
        parts = {name: -(-size // share.processes) for name, size in parts.items()}
    elif share.processes > 1:
        parts["exchange of gradients"] = 4 * BUCKET
    if regression > matching:
        name = f"activations of {regressed} regressed images" + (" and LPIPS" if lpips else "")
        return parts | {name: regression}
    return parts | {f"activations of {matched} matched images": matching}


def largest_batch(numbers: Mapping[str, Any], key: str) -> int:
    """The largest batch of all phases, `key` matching_batch_size or regression_batch_size."""
    sizes = [phase[key] for phase in numbers.get("phases", []) if phase.get(key) is not None]
    return max(sizes if sizes and len(sizes) == len(numbers["phases"]) else [numbers[key], *sizes])


def drawing_parts(*, weights: int, found: Line, batch_size: int) -> dict[str, int]:
    """Bytes by purpose while images are drawn."""
    return {"weights": weights, f"activations of {batch_size} images": found.of(batch_size)}


@torch.no_grad()
def _working(denoiser: nn.Module, shape: tuple[int, ...], num: int) -> int:
    given = _input(denoiser, shape, num)
    return peak_bytes(lambda: denoiser(*given))


def _input(denoiser: nn.Module, shape: tuple[int, ...], num: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    like = next(denoiser.parameters())
    network = getattr(denoiser, "network", None)
    classes = getattr(network, "num_classes", 0)  # not every network takes -1, none
    label = torch.full((num,), 0 if classes else -1, device=like.device)
    if (empty := getattr(network, "empty", None)) is not None:  # under guidance
        label = torch.zeros((num, *empty.shape), dtype=empty.dtype, device=like.device)
    elif width := getattr(next(iter(carriers(denoiser)), network), "text_width", 0):
        label = like.new_zeros((num, TEXT_LENGTH, width))
    return like.new_zeros((num, *shape)), like.new_ones(num), label
