"""Phases of a distillation: which losses, how many updates, what comes when."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Phase:
    """One entry of `distill.method.phases` with its place: updates first .. first + updates - 1, pairs read before it.

    Attributes:
        index: its place in the config's list, from 0; phases that were skipped count.
        numbers: its entry, with the section's numbers where it names none of its own.
    """

    index: int
    numbers: dict[str, Any]
    first: int
    updates: int
    trains_generator: bool
    matching: bool
    regression: bool
    first_pair: int

    @property
    def fake_updates(self) -> int:
        """Fake updates per generator update (1 per update in a fake-only phase)."""
        return int(self.numbers["fake_updates"]) if self.trains_generator else 1


def plan(numbers: Mapping[str, Any]) -> tuple[list[Phase], list[str]]:
    """The phases of section `distill` that have something to learn, and lines that name what is not used.

    Lines name a phase by its index in the config, from 0: one that was skipped, or whose fake updates are not made.

    A phase scales the section's weights, so `regression_weight: 0.0` means off in all phases. A phase of the
    fake denoiser alone is skipped where no phase uses the fake score.

    Raises:
        ValueError: shared noise in a matching phase without fake updates.
    """
    phases: list[Phase] = []
    notes = []
    uses_fake = bool(numbers["matching_weight"]) and numbers["fake_score"]
    first = pairs = 0
    for index, entry in enumerate(numbers["phases"]):
        phase = _whole(numbers, entry)
        both = phase["train"] == "both"
        matching = both and bool(numbers["matching_weight"] * phase["matching_scale"])
        regression = both and bool(numbers["regression_weight"] * phase["regression_scale"])
        if (both and not (matching or regression)) or (not both and not uses_fake):
            notes.append(f"phase {index} skipped: no loss is left in it")
            continue
        if matching and numbers["shared_noise"] and not phase["fake_updates"]:
            raise ValueError(f"phase {index}: shared_noise needs fake_updates of at least 1, or its gradient is lost")
        if both and phase["fake_updates"] and not (matching and numbers["fake_score"]):
            notes.append(f"phase {index}: the fake score is not used, fake_updates {phase['fake_updates']} not made")
        phases.append(Phase(index, phase, first, phase["updates"], both, matching, regression, pairs))
        first += phase["updates"]
        pairs += phase["updates"] * phase["regression_batch_size"] * regression
    return phases, notes


def _whole(numbers: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of `phases` that says everything itself; `num_pairs` None is all of the manifest."""
    own = {name: value for name, value in entry.items() if value is not None}
    section = {name: numbers[name] for name in ("matching_batch_size", "regression_batch_size")}
    section |= {"max_index": numbers["levels"]["max_index"], "num_pairs": None}
    return section | {"decoder": numbers["regression_distance"].get("decoder", "none")} | own


def phase_of(phases: list[Phase], update: int) -> Phase:
    """The phase that an update belongs to; ValueError if it is none of theirs."""
    for phase in phases:
        if phase.first <= update < phase.first + phase.updates:
            return phase
    raise ValueError(f"update {update} belongs to no phase")


def num_passes(numbers: Mapping[str, Any]) -> int:
    """Network passes of a whole distillation, in batches of the section; a pass whose gradient is taken counts 3."""
    matching, regression = image_passes(numbers)
    return round(matching / numbers["matching_batch_size"] + regression / numbers["regression_batch_size"])


def image_passes(numbers: Mapping[str, Any]) -> tuple[int, int]:
    """Passes of a network over one image in a whole distillation, counted as in `num_passes`.

    Returns:
        Those for distribution matching and the fake denoiser, and those for regression.
    """
    totals = [0, 0]
    real = 1 if numbers.get("guidance", 1.0) == 1 else 2  # guidance asks with and without the condition
    for phase in plan(numbers)[0]:
        sizes = {key: phase.numbers[key] for key in ("matching_batch_size", "regression_batch_size")}
        fake = numbers["fake_score"] and (phase.matching or not phase.trains_generator)
        num_fake = phase.fake_updates if fake else 0
        generated = max(num_fake - phase.trains_generator, 0)  # images of the fake updates' own noise
        shared = bool(phase.matching and num_fake and numbers["shared_noise"])  # that pass is a fake update's, too
        scores = phase.matching * (real + numbers["fake_score"]) - shared  # of the teacher and the fake denoiser
        update = (3 * (phase.matching + num_fake) + generated + scores) * sizes["matching_batch_size"]
        if phase.matching and phase.regression and numbers.get("match_pairs"):
            update += (scores + 3 * bool(num_fake)) * sizes["regression_batch_size"]
        totals[0] += phase.updates * update
        totals[1] += phase.updates * 3 * phase.regression * sizes["regression_batch_size"]
    return totals[0], totals[1]
