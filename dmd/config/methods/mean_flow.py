"""Section `method` of MeanFlow."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dmd.config.method_base import STUDENT, TEACHER, MethodSection, Mode, Phase, Role, Source
from dmd.config.methods.call_times import CallLevels
from dmd.config.methods.keys import Dropout
from dmd.config.section_base import Batch, Guidance, LogMean, LogStd, Many, Scale


class MeanFlow(MethodSection):
    """MeanFlow (Geng et al. 2025): the mean velocity of the ODE between two times, learned from the teacher's velocity.

    The defaults are those of the paper for CIFAR-10, where it trains without a teacher, with EDM's augmentation, with
    dropout 0.2 and an `ema_decay` of 0.9999.
    """

    optimiser_defaults = {STUDENT: {"learning_rate": 6.0e-4, "weight_decay": 0.0}}
    schedule_defaults = {"warmup": 10000}
    # Forward-mode derivatives: of compiled and sharded networks there are none, in bfloat16 they are too coarse. The
    # second time is no layer of the base network that adapters share.
    refuses = ("compile", "dtype", "shard_parameters", "adapter")
    keeps_first_calls = True
    streams = frozenset({"images"})
    name: Literal["mean-flow"]
    teach: Literal["distillation", "training"] = Field(
        "distillation", description="velocity of the teacher, or of the straight line from the image to the noise"
    )
    guidance: Guidance = Field(1.0, description="classifier-free guidance of the teacher; 1 = none")
    calls: CallLevels = Field(
        (80.0,),
        description="noise levels of the student's calls, the first the highest of the losses; sample.calls: n: the "
        "first n",
    )
    sigma_log_mean: LogMean = Field(-2.0, description="mean of ln(sigma) of both levels; ln(sigma) is the logit of t")
    sigma_log_std: LogStd = Field(2.0, description="standard deviation of ln(sigma)")
    equal: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.25, description="fraction of images whose two levels are equal, so that they learn the velocity itself"
    )
    power: Annotated[float, Field(ge=0, le=2)] = Field(
        0.75, description="p of the weight 1 / (e + c)^p, e the squared error of an image; 0 = no weight"
    )
    c: Scale = Field(1.0e-3, description="of this weight")
    dropout: Dropout = False
    batch_size: Batch = Field(1024, description="images")
    phases: Annotated[Many[Phase], Field(min_length=1)] = (Phase(updates=800000),)

    @model_validator(mode="after")
    def _fits(self) -> MeanFlow:
        if self.teach == "training" and self.guidance != 1:
            raise ValueError(f"guidance: {self.guidance:g}, but teach training has no teacher")
        return self

    def roles(self) -> dict[str, Role]:
        """Teacher (for distillation), and the student, whose network gets a second time."""
        teacher = {TEACHER: Role(Source.TEACHER, Mode.FROZEN, guidance=self.guidance)}
        student = {STUDENT: Role(Source.START, Mode.TRAINED, second_time=True)}
        return (teacher if self.teach == "distillation" else {}) | student
