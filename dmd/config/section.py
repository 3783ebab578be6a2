"""What every section of the configuration is: a frozen pydantic model that refuses unknown keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """A part of the configuration, or of a spec. Defaults stand here and nowhere else."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def spec(self) -> dict[str, Any]:
        """What differs from the defaults, in values that JSON has."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)

    def whole(self) -> dict[str, Any]:
        """Every key, in values that JSON has."""
        return self.model_dump(mode="json", by_alias=True)


def refuse(faults: Iterable[str]) -> None:
    """Raises a ValueError with all faults, a line each: `key: message` where it is about a key of the section."""
    if lines := list(faults):
        raise ValueError("\n".join(lines))


def _whole(value: Any) -> Any:
    """80.0 as 80: YAML has both for one number. 1.5 stays, to be refused."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


SOURCES = ("file", "folder")  # keys of paths, beside which a `sha256` may stand
Item = TypeVar("Item")
Many = Annotated[tuple[Item, ...], Field(strict=False)]  # YAML has lists only
Whole = Annotated[int, BeforeValidator(_whole), Field(ge=0)]
Count = Annotated[int, BeforeValidator(_whole), Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Pinned = Annotated[
    str | None,
    Field(pattern="^[0-9a-f]{8,64}$", description="sha256, or its first digits; null: recorded at first use"),
]
Path = Annotated[str, Field(min_length=1)]
NAMED = (
    ""  # default of a path that the configuration has to name and a spec leaves out: a stage is given the file itself
)


def without_paths(value: Any) -> Any:
    """A spec without the files and folders from outside that it names; their digests stay."""
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: without_paths(item) for key, item in value.items() if key not in SOURCES}
