"""Section `method` of continuous-time consistency models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dmd.config.method_base import STUDENT, TEACHER, MethodSection, Mode, Phase, Role, Source
from dmd.config.methods.call_times import CallLevels
from dmd.config.methods.keys import Dropout
from dmd.config.section_base import Batch, Guidance, LogMean, LogStd, Many, Scale, Whole


class Scm(MethodSection):
    """Continuous-time consistency models (Lu and Song 2024): a consistency model without a grid of noise levels.

    Noise levels, learning rates and c are those of the paper for CIFAR-10; it trains with RAdam.
    """

    optimiser_defaults = {
        role: {"learning_rate": 1.0e-4, "betas": (0.9, 0.99), "weight_decay": 0.0} for role in (STUDENT, "uncertainty")
    }
    # Forward-mode derivatives: of compiled and sharded networks there are none, in bfloat16 they are too coarse.
    refuses = ("compile", "dtype", "shard_parameters")
    keeps_first_calls = True
    streams = frozenset({"images"})
    name: Literal["scm"]
    teach: Literal["distillation", "training"] = Field(
        "distillation", description="slope of the ODE from the teacher, or from the image and its noise"
    )
    guidance: Guidance = Field(1.0, description="classifier-free guidance of the teacher; 1 = none")
    sigma_log_mean: LogMean = Field(-1.0, description="mean of ln(sigma)")
    sigma_log_std: LogStd = Field(1.4, description="standard deviation of ln(sigma)")
    tangent_warmup: Whole = Field(
        10000, description="updates until the derivative of the student has its full weight in the tangent"
    )
    c: Scale = Field(0.1, description="of the normalised tangent g / (|g| + c)")
    dropout: Dropout = False
    calls: CallLevels = Field((80.0,), description="noise levels of the student's calls; sample.calls: n: the first n")
    batch_size: Batch = Field(512, description="images; the default is from memory, not from the paper")
    phases: Annotated[Many[Phase], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> Scm:
        if self.teach == "training" and self.guidance != 1:
            raise ValueError(f"guidance: {self.guidance:g}, but teach training has no teacher")
        return self

    def roles(self) -> dict[str, Role]:
        """Teacher (for distillation), student, and the logarithm of the weight of each noise level."""
        teacher = {TEACHER: Role(Source.TEACHER, Mode.FROZEN, guidance=self.guidance)}
        return {
            **(teacher if self.teach == "distillation" else {}),
            STUDENT: Role(Source.START, Mode.TRAINED),
            "uncertainty": Role(Source.NEW, Mode.TRAINED),
        }
