"""Signs that a training goes wrong, from what its monitor measured, with what usually helps. Pure functions of rows.

The thresholds are fixed on the runs of bench/drift.py, which are distillations of digits: healthy ones by several
methods, and others that collapse because of their rates, of a fake denoiser that learns too little, or of guidance.
bench/results/drift.json has what was measured in each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dmd.metrics.teacher_comparison import CONTRAST, DIVERSITY, FEATURES, SATURATION, SHARPNESS

Row = Mapping[str, float]
FAR = 0.9  # distance late in a phase; two halves of the teacher's images have 1
GROWN, ABOVE = 1.35, FAR / 2  # distance over the lowest of the phase, and at least that far
GROWN_NEAR, ABOVE_NEAR = 2.0, 0.1  # the same for students that are near the teacher's images
LOST = 0.6  # diversity over the highest of the phase
ALIKE = 0.5  # diversity late in a phase
RANGE = (0.7, 1.3)  # contrast and saturation late in a phase
HIGHEST = 1.6  # contrast and saturation at any time
BLURRED = 0.6  # sharpness late in a phase
NAMES = {"contrast": CONTRAST, "saturation": SATURATION, "sharpness": SHARPNESS, "diversity": DIVERSITY}
FAKE = "where there is a fake denoiser, raise fake_updates or optimisers.fake.learning_rate"
RATE = "lower optimisers.student.learning_rate"
BEST = "sample.weights: best takes the weights of the lowest distance"


@dataclass(frozen=True)
class Sign:
    """A sign of drift.

    Attributes:
        name: of the kind of sign.
        sentence: what was measured.
        advice: what usually helps.
    """

    name: str
    sentence: str
    advice: str

    def __str__(self) -> str:
        return f"{self.sentence}; {self.advice}"


def measured(rows: Sequence[Row]) -> list[Row]:
    """The rows of a training log in which the monitor has columns."""
    return [row for row in rows if math.isfinite(row.get(CONTRAST, math.nan))]


def signs(rows: Sequence[Row], phases: Sequence[range]) -> list[Sign]:
    """Signs of drift at the last of the measured rows.

    A row is compared with earlier ones of its phase only, since the phases of a method may train students of different
    numbers of calls. Some signs count only in the second half of the training and of a phase, since students begin
    blurred and alike.

    Args:
        rows: see `measured`; they have the columns `update` and `phase`.
        phases: the updates of each phase, in order.
    """
    if not rows:
        return []
    update, last = int(rows[-1]["update"]), rows[-1]
    phase = next(each for each in phases if update in each)
    late = update >= phase.start + len(phase) // 2 and update >= phases[-1].stop // 2
    same = [row for row in rows if int(row["update"]) in phase]
    return [*_distance(same, late), *_diversity(same, late), *_contrast(last, late), *_sharpness(last, late)]


def summary(rows: Sequence[Row], found: Sequence[Sign]) -> str:
    """One line: the last measurement, and the signs of drift."""
    last = rows[-1]
    parts = [f"{name} {last[key]:.2f}" for name, key in NAMES.items() if math.isfinite(last.get(key, math.nan))]
    distances = [(row[FEATURES], int(row["update"]) + 1) for row in rows if math.isfinite(row.get(FEATURES, math.nan))]
    distance = ""
    if distances:
        lowest, done = min(distances)
        distance = f"distance to the teacher's images {distances[-1][0]:.2f}, lowest {lowest:.2f} after {done:,}; "
    judged = "; ".join(f"drift: {sign}" for sign in found) or "no sign of drift"
    return f"after {int(last['update']) + 1:,} updates {distance}over the teacher's: {', '.join(parts)}; {judged}"


def _distance(rows: Sequence[Row], late: bool) -> Iterator[Sign]:
    values = _values(rows, FEATURES)
    if not values:
        return
    now, lowest = values[-1], min(values)
    if now > max(GROWN * lowest, ABOVE) or now > max(GROWN_NEAR * lowest, ABOVE_NEAR):
        yield Sign(
            "distance grows",
            f"the distance to the teacher's images has grown from {lowest:.2f} to {now:.2f}",
            f"{RATE}, raise ema_decay, or {FAKE}; {BEST}",
        )
    elif late and now > FAR:
        yield Sign(
            "distance stays",
            f"the student's images are still {now:.2f} from the teacher's, whose own halves are 1 apart",
            f"it learns too little or the wrong thing: {FAKE}; lower guidance; train longer",
        )


def _diversity(rows: Sequence[Row], late: bool) -> Iterator[Sign]:
    values = _values(rows, DIVERSITY)
    if not values:
        return
    now, highest = values[-1], max(values)
    if now < LOST * highest:
        sentence = f"images of one condition become alike: their diversity fell from {highest:.2f} to {now:.2f}"
    elif late and now < ALIKE:
        sentence = f"images of one condition are alike: their diversity is {now:.2f} of the teacher's"
    else:
        return
    yield Sign("alike", sentence, f"{RATE}, lower guidance, or {FAKE}")


def _contrast(row: Row, late: bool) -> Iterator[Sign]:
    for name, key in (("contrast", CONTRAST), ("saturation", SATURATION)):
        value = row.get(key, math.nan)
        if value > HIGHEST or late and value > RANGE[1]:
            advice = f"lower guidance, {RATE}, or {FAKE}"
            yield Sign(name, f"the {name} of the images is {value:.2f} of the teacher's", advice)
        elif late and value < RANGE[0]:
            yield Sign(name, f"the {name} of the images is only {value:.2f} of the teacher's", FAKE)


def _sharpness(row: Row, late: bool) -> Iterator[Sign]:
    value = row.get(SHARPNESS, math.nan)
    if late and value < BLURRED:
        advice = "lower ema_decay if the training is short, or train longer"
        yield Sign("blurred", f"the sharpness of the images is {value:.2f} of the teacher's", advice)


def _values(rows: Sequence[Row], name: str) -> list[float]:
    return [row[name] for row in rows if math.isfinite(row.get(name, math.nan))]
