"""Noise levels that losses draw from."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from dmd.config.section_base import SIGMA_MAX, SIGMA_MIN, Integer, Rho, Section, Sigma, Steps

Index = Annotated[Integer, Field(ge=0, le=10**5)]  # of a noise level
LOWEST = "null = 0.002 or, if higher, the teacher's"


def check_order(sigma_min: float | None, sigma_max: float | None) -> None:
    """ValueError unless sigma_max is above sigma_min, or EDM's lowest; a sigma_max of None is unknown and passes."""
    sigma_min = SIGMA_MIN if sigma_min is None else sigma_min
    if sigma_max is not None and sigma_max <= sigma_min:
        raise ValueError(f"sigma_max {sigma_max:g} is not above sigma_min {sigma_min:g}")


class KarrasRange(Section):
    """The range of levels of Karras et al. 2022, Eq. 5, for a student whose map is the identity at the lowest one."""

    sigma_min: Sigma | None = Field(
        None, description=f"lowest level, where the student's map is the identity; {LOWEST}"
    )
    sigma_max: Sigma | None = Field(80.0, description="highest level; null = the teacher's highest")
    rho: Rho = Field(7.0, description="of Eq. 5: larger means denser levels near sigma_min")

    @model_validator(mode="after")
    def _range(self) -> Self:
        check_order(self.sigma_min, self.sigma_max)
        return self


class KarrasLevels(Section):
    """Noise levels of EDM teachers (Karras et al. 2022, Eq. 5), and the range that the matching loss draws from."""

    kind: Literal["karras"] = "karras"
    count: Annotated[Steps, Field(ge=2)] = Field(1000, description="number of levels; index 0 is sigma_min")
    sigma_min: Sigma | None = Field(None, description=f"lowest level; {LOWEST}")
    sigma_max: Sigma | None = Field(None, description="highest level; null = 80 or, if lower, the teacher's highest")
    rho: Rho = Field(7.0, description="of Eq. 5: larger means denser levels near sigma_min")
    min_index: Index = Field(20, description="lowest index that the matching loss draws")
    max_index: Index = Field(980, description="highest index that the matching loss draws")

    @model_validator(mode="after")
    def _range(self) -> KarrasLevels:
        check_order(self.sigma_min, SIGMA_MAX if self.sigma_max is None else self.sigma_max)
        if not self.min_index <= self.max_index < self.count:
            raise ValueError(f"indices {self.min_index}..{self.max_index} are not a range within 0..{self.count - 1}")
        return self


class TeacherLevels(Section):
    """The discrete noise levels that the teacher was trained on."""

    kind: Literal["teacher"]
    min_index: Index = Field(20, description="lowest index that the matching loss draws")
    max_index: Index = Field(980, description="highest index that the matching loss draws")

    @model_validator(mode="after")
    def _range(self) -> TeacherLevels:
        if self.min_index > self.max_index:
            raise ValueError(f"indices {self.min_index}..{self.max_index} are not a range")
        return self


def _karras(value: Any) -> Any:
    """Adds the default `kind: karras` to levels without a kind."""
    return {"kind": "karras", **value} if isinstance(value, dict) else value


Levels = Annotated[KarrasLevels | TeacherLevels, Field(discriminator="kind"), BeforeValidator(_karras)]


class KarrasCurve(Section):
    """Noise levels of Karras et al. 2022, Eq. 5, at uniform positions in [0, last): sigma_min at 0, sigma_max at 1."""

    sigma_min: Sigma | None = Field(None, description=f"lowest level; {LOWEST}")
    sigma_max: Sigma = Field(80.0, description="highest level")
    rho: Rho = Field(7.0, description="of Eq. 5: larger means denser levels near sigma_min")
    last: Annotated[float, Field(gt=0, le=1)] = Field(
        0.8, description="largest position; with the other defaults 0.8 is sigma 24.4"
    )

    @model_validator(mode="after")
    def _range(self) -> KarrasCurve:
        check_order(self.sigma_min, self.sigma_max)
        return self
