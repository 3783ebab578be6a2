"""The range that losses draw the teacher's guidance from, and the images that such methods read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dmd.config.section_base import Guidance, Section

Data = Annotated[
    Literal["images", "pairs"],
    Field(description="images to learn from: those of the dataset, or those of section pairs, which may be latents"),
]


class GuidanceRange(Section):
    """Guidance w of the teacher, drawn uniformly for each image."""

    lowest: Guidance = Field(description="1 = none")
    highest: Guidance = Field(description="at least lowest")

    @model_validator(mode="after")
    def _order(self) -> GuidanceRange:
        if self.highest < self.lowest:
            raise ValueError(f"highest {self.highest:g} is below lowest {self.lowest:g}")
        return self

    @property
    def middle(self) -> float:
        """The mean of what is drawn."""
        return (self.lowest + self.highest) / 2

    @property
    def both(self) -> tuple[float, float]:
        """lowest, highest."""
        return self.lowest, self.highest
