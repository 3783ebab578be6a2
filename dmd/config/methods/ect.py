"""Section `method` of Easy Consistency Tuning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dmd.config.method_base import STUDENT, MethodSection, Mode, Phase, Role, Source
from dmd.config.methods.call_times import CallLevels
from dmd.config.methods.keys import Dropout
from dmd.config.section_base import Batch, Count, LogMean, LogStd, Many, Weight

SMALLEST = 1e-6  # relative gap of the two levels, which float32 still resolves


class Ect(MethodSection):
    """Easy Consistency Tuning (Geng et al. 2024): consistency training that begins as the denoising of its start.

    The defaults are those of the paper for CIFAR-10, except that it trains with RAdam, dropout 0.2, and an `ema_decay`
    of 0.9999.
    """

    optimiser_defaults = {STUDENT: {"learning_rate": 1.0e-4, "weight_decay": 0.0}}
    schedule_defaults = {"warmup": 0}
    refuses = ("dtype",)  # the two levels become so close that bfloat16 rounds away how the images there differ
    keeps_first_calls = True
    streams = frozenset({"images"})
    name: Literal["ect"]
    sigma_log_mean: LogMean = Field(-1.1, description="mean of ln(t) of the upper level t")
    sigma_log_std: LogStd = Field(2.0, description="standard deviation of ln(t)")
    q: Annotated[float, Field(ge=1.01, le=1e4)] = Field(
        2.0, description="of the lower level r = t (1 - n(t) / q^(stage + 1)): larger means closer levels"
    )
    stage_updates: Count = Field(25000, description="updates of a stage; stage 0 is the first")
    k: Weight = Field(8.0, description="of n(t) = 1 + k sigmoid(-b t), which widens the gap at low levels")
    b: Weight = Field(1.0, description="of n(t)")
    c: Weight = Field(
        0.0, description="of the distance (|x - y|^2 + c^2)^1/2 - c over all values of an image; 0 = the norm"
    )
    weighting: Literal["gap", "network"] = Field(
        "gap", description="1 / (t - r), or the weight of the network's preconditioning at t"
    )
    dropout: Dropout = False
    calls: CallLevels = Field((80.0,), description="noise levels of the student's calls; sample.calls: n: the first n")
    batch_size: Batch = Field(128, description="images")
    phases: Annotated[Many[Phase], Field(min_length=1)] = (Phase(updates=400000),)

    @model_validator(mode="after")
    def _fits(self) -> Ect:
        stages = -(-sum(phase.updates for phase in self.phases) // self.stage_updates)
        if self.q ** -float(stages) < SMALLEST:
            raise ValueError(
                f"stage_updates: the phases make {stages} stages of {self.stage_updates} updates, in the last of which "
                f"the two levels differ by less than {SMALLEST:g} of their value: use longer stages or a smaller q"
            )
        return self

    def roles(self) -> dict[str, Role]:
        """The student alone, which is its own target."""
        return {STUDENT: Role(Source.START, Mode.TRAINED)}
