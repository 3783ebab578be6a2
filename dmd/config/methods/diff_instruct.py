"""Section `method` of Diff-Instruct."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dmd.config.method_base import STUDENT, FakePhase, MethodSection, Role, score_roles
from dmd.config.section_base import Batch, Guidance, LogMean, LogStd, Many, Sigma


class DiffInstruct(MethodSection):
    """Diff-Instruct (Luo et al. 2023): the integral KL divergence, without pairs or images."""

    optimiser_defaults = {
        role: {"learning_rate": 1.0e-5, "betas": (0.0, 0.999), "weight_decay": 0.0} for role in (STUDENT, "fake")
    }
    name: Literal["diff-instruct"]
    sigma: Sigma = Field(1.0, description="noise level of the student's input")
    sigma_log_mean: LogMean = Field(-1.2, description="mean of ln(sigma) in both losses")
    sigma_log_std: LogStd = Field(1.2, description="standard deviation of ln(sigma) in both losses")
    guidance: Guidance = Field(1.0, description="classifier-free guidance of the real score only; 1 = none")
    batch_size: Batch = Field(256, description="images in each loss")
    phases: Annotated[Many[FakePhase], Field(min_length=1)]

    def roles(self) -> dict[str, Role]:
        """Teacher (real score), student (generator) and fake denoiser (fake score)."""
        return score_roles(self.guidance)
