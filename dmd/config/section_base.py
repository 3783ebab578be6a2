"""The base class of sections: a frozen pydantic model that refuses unknown keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """A part of the configuration or of a spec. Its defaults are defined only here."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def spec(self) -> dict[str, Any]:
        """The keys that differ from their defaults, as JSON values."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)

    def with_defaults(self) -> dict[str, Any]:
        """All keys, as JSON values."""
        return self.model_dump(mode="json", by_alias=True)


def refuse(faults: Iterable[str]) -> None:
    """Raises ValueError with all faults, one per line; a fault of a key of the section is `key: message`."""
    if lines := list(faults):
        raise ValueError("\n".join(lines))


def _to_integer(value: Any) -> Any:
    """Converts whole floats, as in 80.0, to int; any other value is returned unchanged, for pydantic to refuse."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


SOURCES = ("file", "folder")  # keys of paths; a `sha256` may stand beside them
Item = TypeVar("Item")
Many = Annotated[tuple[Item, ...], Field(strict=False)]  # YAML has lists only
Whole = Annotated[int, BeforeValidator(_to_integer), Field(ge=0)]
Count = Annotated[int, BeforeValidator(_to_integer), Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Pinned = Annotated[
    str | None,
    Field(pattern="^[0-9a-f]{8,64}$", description="the file's sha256 or its first digits; null: recorded at first use"),
]
Path = Annotated[str, Field(min_length=1)]
# Default of a path that the configuration must set and a spec leaves out, since a stage gets the file itself.
UNSET_PATH = ""


def without_paths(value: Any) -> Any:
    """A spec without paths of files and folders; their digests stay."""
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: without_paths(item) for key, item in value.items() if key not in SOURCES}
