"""One update of method dmd2, backward simulation included, against the sum of its network passes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench import clock, distill_step, setting, updates
from dmd.config.training import Distill

CALLS = (1, 2, 4, 8)
FAKE_UPDATES = 2


def measure(folder: Path, *, repetitions: int) -> dict[str, Any]:
    """Time of an update divided by the time of its bare passes and optimiser steps, for each number of calls.

    The trained call is drawn anew in each update, so that passes are counted while the update runs; `passes` has their
    mean: a forward pass without gradient counts 1, one with its backward pass 3.
    """
    teacher, manifest = distill_step.inputs(folder)
    passes = distill_step.Passes(teacher)
    figures: dict[str, Any] = {}
    for calls in CALLS:
        runner = updates.from_files(teacher, manifest, _section(calls))
        counts = _counted(runner)
        found, sums, totals = [], [], []
        for _ in range(repetitions + 1):
            counts.clear()
            found.append(clock.cost(runner.next))
            parts = passes.one_of_each()
            forward, trained = counts["forward"], counts["trained"]
            sums.append(_times(parts["forward"], forward) + _times(parts["trained"], trained) + parts["optimisers"])
            totals.append(forward + 3 * trained)
        runner.close()
        figures[f"{calls}_over_passes"] = clock.ratios(found[1:], sums[1:], most=1.03)  # the first is warm-up
        figures[f"{calls}_seconds"] = {"cpu": clock.spread([cost.cpu for cost in found[1:]])}
        figures[f"{calls}_passes"] = sum(totals[1:]) / repetitions
    return figures


def _section(calls: int) -> Distill:
    phases = [{"updates": 1000, "fake_updates": FAKE_UPDATES}]
    method = {"name": "dmd2", "calls": calls, "batch_size": setting.BATCH_SIZE, "phases": phases}
    return Distill.model_validate({"method": method})


def _counted(runner: updates.Updates) -> Counter[str]:
    """A counter of passes of all networks of an update, with their gradients or without."""
    counts: Counter[str] = Counter()

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        counts["trained" if torch.is_grad_enabled() else "forward"] += 1

    for role in runner.trainer.networks:
        runner.trainer.networks[role].register_forward_hook(count)
    return counts


def _times(cost: clock.Cost, number: int) -> clock.Cost:
    return clock.Cost(cost.cpu * number, cost.wall * number)
