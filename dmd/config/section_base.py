"""The base class of sections: a frozen pydantic model that refuses unknown keys."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """A part of the configuration or of a spec. Its defaults are defined only here."""

    # defer_build: a process builds the validators of the sections that it reads, not of all methods
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)

    def spec(self) -> dict[str, Any]:
        """The keys that differ from their defaults, as JSON values."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)

    def with_defaults(self) -> dict[str, Any]:
        """All keys, as JSON values."""
        return self.model_dump(mode="json", by_alias=True)


def nested_sections(section: Section, name: str) -> Iterator[tuple[str, Section]]:
    """A section and all within it, with their keys: `name.key`, or `name.key[0]` within a list."""
    yield name, section
    for field, info in type(section).model_fields.items():
        value, key = getattr(section, field), f"{name}.{info.alias or field}"
        items = [(f"{key}[{number}]", item) for number, item in enumerate(value)] if isinstance(value, tuple) else []
        for place, item in items or [(key, value)]:
            if isinstance(item, Section):
                yield from nested_sections(item, place)


def refuse(faults: Iterable[str]) -> None:
    """Raises ValueError with all faults, one per line; a fault of a key of the section is `key: message`."""
    if lines := list(faults):
        raise ValueError("\n".join(lines))


def _to_integer(value: Any) -> Any:
    """Converts whole floats, as in 80.0, to int; any other value is returned unchanged, for pydantic to refuse."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


NUM_SEEDS = 2**32  # torch's CPU generator uses the low 32 bits of a seed


def own_path(path: str) -> str:
    """A path of the configuration with `~` expanded.

    Raises:
        ValueError: no file can have this name. (Pydantic itself refuses names that are not UTF-8.)
    """
    if "\0" in path:
        raise ValueError(f"{ascii(path)} holds a null character, which no path may")
    return os.path.expanduser(path)


SOURCES = ("file", "folder")  # keys of paths; a `sha256` may stand beside them
Item = TypeVar("Item")
Many = Annotated[tuple[Item, ...], Field(strict=False)]  # YAML has lists only
# Upper limits are about ten times what was ever published: a slip of the keyboard ends before any work.
Integer = Annotated[int, BeforeValidator(_to_integer)]
Whole = Annotated[Integer, Field(ge=0, le=10**9)]
Count = Annotated[Integer, Field(ge=1, le=10**9)]
Repeats = Annotated[Integer, Field(ge=1, le=10**4)]  # updates of a network per update of another one
Steps = Annotated[Integer, Field(ge=1, le=10**5)]  # network calls, noise levels
Batch = Annotated[Integer, Field(ge=1, le=10**5)]  # images at once
ShardSize = Annotated[Integer, Field(ge=1, le=10**6)]
Side = Annotated[Integer, Field(ge=1, le=2**14)]  # pixels
Seed = Annotated[Integer, Field(ge=0, le=NUM_SEEDS - 1)]
Positive = Annotated[float, Field(gt=0, le=1e30)]  # float32 ends at 3e38; a gradient clip that large is off
Scale = Annotated[float, Field(gt=0, le=1e6)]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Sigma = Annotated[float, Field(ge=1e-6, le=1e6)]  # noise level
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0  # of EDM (Karras et al. 2022, Table 1)
Rho = Annotated[float, Field(ge=0.1, le=100)]  # outside, powers of it leave float64
LogMean = Annotated[float, Field(ge=-20, le=20)]
LogStd = Annotated[float, Field(gt=0, le=20)]
Guidance = Annotated[float, Field(ge=1, le=1000)]
Decay = Annotated[float, Field(ge=0, lt=1)]
FULL_LENGTH = 64  # hex digits of a sha256
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Pinned = Annotated[
    str | None,
    Field(pattern="^[0-9a-f]{8,64}$", description="the file's sha256 or its first digits; null: recorded at first use"),
]
Path = Annotated[str, Field(min_length=1), AfterValidator(own_path)]
# Default of a path that the configuration must set and a spec leaves out, since a stage gets the file itself.
UNSET_PATH = ""


def without_paths(value: Any) -> Any:
    """A spec without paths of files and folders; their digests stay."""
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: without_paths(item) for key, item in value.items() if key not in SOURCES}


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
