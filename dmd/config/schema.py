"""The JSON schema of config.yaml, for editors: `python -m dmd.config.schema` writes it.

No key of an experiment is required in it, since an experiment may inherit any key.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from dmd.config.experiment import NAME, Experiment, File

PATH = Path(__file__).resolve().parents[2] / "workflow" / "schemas" / "config.schema.json"
EXTENDS = {"type": "string", "pattern": NAME, "description": "experiment from which all other keys are inherited"}
SEEDS = {
    "type": "array",
    "minItems": 1,
    "uniqueItems": True,
    "items": {"type": "integer", "minimum": 0},
    "description": "training seeds; the first is this experiment's, each further N adds NAME-seedN; not inherited",
}


def schema() -> dict[str, Any]:
    """The schema of the file."""
    parts = definitions([File, Experiment])
    file: dict[str, Any] = parts.pop("File")
    used = _references(parts["Experiment"], parts)
    parts |= {name: _partial(parts[name]) for name in used | {"Experiment"}}
    parts["Experiment"]["properties"] = {"extends": EXTENDS, **parts["Experiment"]["properties"]}
    parts["Distill"]["properties"]["seeds"] = SEEDS
    file["properties"]["experiments"]["patternProperties"] = {NAME: {"$ref": "#/$defs/Experiment"}}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **file, "$defs": parts}


def definitions(models: Iterable[type[BaseModel]]) -> dict[str, Any]:
    """JSON schemas of models and of all that they are made of, by name."""
    parts: dict[str, Any] = models_json_schema([(model, "validation") for model in models])[1]["$defs"]
    return {name: _with_ranges(part) for name, part in parts.items()}


def _with_ranges(value: Any) -> Any:
    """Renames `ge` and `le`, which pydantic writes for a range after a validator, to `minimum` and `maximum`."""
    if isinstance(value, list):
        return [_with_ranges(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {{"ge": "minimum", "le": "maximum"}.get(key, key): _with_ranges(item) for key, item in value.items()}


def _references(value: Any, parts: dict[str, Any]) -> set[str]:
    """Names of all parts that a value refers to, directly or not."""
    names: set[str] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if (name := str(item.get("$ref", "")).removeprefix("#/$defs/")) and name not in names:
                names.add(name)
                waiting.append(parts[name])
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    return names


def _partial(value: Any) -> Any:
    """A schema without `required` and `discriminator`, since an experiment may inherit the keys that they ask for."""
    if isinstance(value, list):
        return [_partial(item) for item in value]
    if not isinstance(value, dict):
        return value
    optional = {
        key: item
        for key, item in value.items()
        if key != "discriminator" and not (key == "required" and isinstance(item, list))
    }
    return {"anyOf" if key == "oneOf" else key: _partial(item) for key, item in optional.items()}


def text() -> str:
    """The text of the tracked file."""
    return json.dumps(schema(), indent=1) + "\n"


def main() -> None:
    """Writes the file."""
    PATH.write_text(text())
    print(PATH)


if __name__ == "__main__":
    main()
