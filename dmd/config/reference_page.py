"""`python -m dmd.config.reference_page` writes the page of all keys, docs/configuration-reference.md."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dmd.config.experiment import Experiment, File
from dmd.config.method_base import MethodSection
from dmd.config.schema import EXTENDS, SEEDS, definitions
from dmd.config.section_base import SOURCES, UNSET_PATH, Section
from dmd.config.training import Distill

PATH = Path(__file__).resolve().parents[2] / "docs" / "configuration-reference.md"
INTRODUCTION = """# Keys of config.yaml

`python -m dmd.config.reference_page` writes this page from the classes in `dmd/config`.
[Configuration](configuration.md) explains how the file works.

Headings are paths in the file. `teacher: edm` is section `teacher` with `kind: edm`; `distill.method: dmd` is section
`distill.method` with `name: dmd`; "of `sid`" means that only this kind or method has the section. A key without a
default must be set if its section is used; an experiment that extends another may inherit it.
"""
TYPES = {"integer": "whole number", "number": "number", "boolean": "`true`, `false`", "string": "text"}
NOT_IN_COMPUTE = {
    "adapter": "`distill.adapter`",
    "processes": "`processes` above 1",
}  # what a method may refuse besides
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


class Page:
    """All sections, in the order of the page.

    Attributes:
        headings: by section, one heading per place where it may occur; the page uses the first.
        tags: by section, the value or values of `kind` or `name` that select it; "" if there is no choice.
    """

    def __init__(self) -> None:
        self.headings: dict[type[BaseModel], list[str]] = {File: ["The file"], Experiment: ["`experiments.NAME`"]}
        self.tags: dict[type[BaseModel], str] = {File: "", Experiment: ""}
        self._add(Experiment, "", "")
        self._add(File, "", "")
        self._schemas = definitions(self.headings)

    def text(self) -> str:
        """The text of the page."""
        return "\n".join([INTRODUCTION, *map(self._section, self.headings)])

    def _add(self, parent: type[BaseModel], place: str, owner: str) -> None:
        """Adds all sections within `parent`, which stands at `place`; `owner` is the closest kind or method."""
        for name, field in parent.model_fields.items():
            key = f"{place}.{field.alias or name}".lstrip(".") + _by_name(name, field)
            models = list(_models(field.annotation))
            for model in models:
                seen = model in self.headings
                tag = self.tags.setdefault(model, _tag(model, alone=len(models) == 1))
                heading = f"`{key}{f': {tag}' if tag else ''}`{f' of `{owner}`' if owner else ''}"
                headings = self.headings.setdefault(model, [])
                if heading not in headings:
                    headings.append(heading)
                if not seen:
                    self._add(model, key, tag or owner)

    def _section(self, model: type[BaseModel]) -> str:
        heading, *others = self.headings[model]
        paragraphs = [f"## {heading}", (inspect.getdoc(model) or "").split("\n\nAttributes:")[0]]
        if others:
            paragraphs.append(textwrap.fill(f"Also: {', '.join(others)}.", 120, break_long_words=False))
        if issubclass(model, MethodSection):
            paragraphs += _method_defaults(model)
        schema = self._schemas[model.__name__].get("properties", {})
        rows = [
            _row(field.alias or name, self._value(schema[field.alias or name]), _default(name, field), _meaning(field))
            for name, field in model.model_fields.items()
            if get_args(field.annotation) != (self.tags[model],)  # the heading has what selects the section
        ]
        if model is Experiment:  # an absent section is left out, never null
            rows = [row.replace(" or `null` | `null` |", " |  |") for row in rows]
            rows.insert(0, _row("extends", "name", "", EXTENDS["description"]))
        if model is Distill:
            rows.append(_row("seeds", "list of whole number ≥ 0", "", str(SEEDS["description"])))
        if rows:
            paragraphs.append("\n".join(["| key | value | default | meaning |", "|---|---|---|---|", *rows]))
        return "\n\n".join(paragraphs) + "\n"

    def _value(self, schema: Any) -> str:
        """What a key may be, from its JSON schema."""
        if "$ref" in schema:
            return self._link(schema["$ref"].removeprefix("#/$defs/"))
        if alternatives := schema.get("anyOf") or schema.get("oneOf"):
            *most, last = map(self._value, alternatives)
            return f"{', '.join(most)} or {last}" if most else last
        if values := schema.get("enum") or ([schema["const"]] if "const" in schema else []):
            return ", ".join(f"`{_yaml(each)}`" for each in values)
        kind = schema.get("type")
        if kind == "array":
            fixed = schema.get("prefixItems")
            return f"{len(fixed)} × {self._value(fixed[0])}" if fixed else f"list of {self._value(schema['items'])}"
        if kind == "object":
            (inner,) = schema.get("patternProperties", {"": schema.get("additionalProperties")}).values()
            return f"by name: {self._value(inner)}" if "$ref" in inner else "by name"
        bounds = ", ".join(f"{sign} {_grouped(schema[key])}" for key, sign in BOUNDS.items() if key in schema)
        return "`null`" if kind == "null" else f"{TYPES[kind]} {bounds}".strip()

    def _link(self, name: str) -> str:
        model = next(each for each in self.headings if each.__name__ == name)
        return f"[{self.tags[model] or 'section'}](#{_anchor(self.headings[model][0])})"


def _by_name(name: str, field: FieldInfo) -> str:
    """The placeholder in a heading for the keys of a mapping; "" for other fields."""
    return "" if get_origin(field.annotation) is not dict else ".ROLE" if name == "optimisers" else ".NAME"


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Sections that an annotation is made of."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _tag(model: type[BaseModel], *, alone: bool) -> str:
    """Values of `kind` or `name` that select a section; "" for several values if there is no other section."""
    for key in ("kind", "name"):
        field = model.model_fields.get(key)
        if field and get_origin(field.annotation) is Literal and not (alone and len(get_args(field.annotation)) > 1):
            return ", ".join(get_args(field.annotation))
    return ""


def _method_defaults(model: type[MethodSection]) -> list[str]:
    """Sentences on a method's own defaults of optimisers and schedule, and on the keys that it refuses."""
    own = {f"optimisers.{role}": values for role, values in model.optimiser_defaults.items()}
    own |= {"schedule": model.schedule_defaults} if model.schedule_defaults else {}
    lines = [f"Defaults of `{place}` here: `{_yaml(dict(values))}`." for place, values in own.items()]
    switches = [NOT_IN_COMPUTE.get(switch, f"`compute.{switch}`") for switch in model.refuses]
    refused = [f"{switch} is not supported." for switch in switches]
    return ["\n".join([*lines, *refused])] if lines or refused else []


def _row(key: str, *cells: str) -> str:
    return f"| {' | '.join([f'`{key}`', *(cell.replace('|', chr(92) + '|') for cell in cells)])} |"


def _meaning(field: FieldInfo) -> str:
    """The description of a key, or else the first line of its section's docstring."""
    said = field.description or next((each.description for each in field.metadata if _described(each)), None)
    if said is None:
        models = list(_models(field.annotation))
        said = (inspect.getdoc(models[0]) or "").split("\n")[0].removesuffix(".") if len(models) == 1 else ""
    return str(said)


def _described(metadata: Any) -> bool:
    return isinstance(getattr(metadata, "description", None), str)


def _default(name: str, field: FieldInfo) -> str:
    """The default as YAML; none where the key has to be given."""
    value = field.get_default()
    if field.is_required() or (name in SOURCES and value == UNSET_PATH):
        return ""
    if isinstance(value, Section) and not value.spec():
        return "its defaults"
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    """YAML of one line."""
    plain = json.loads(json.dumps(value, default=Section.spec))
    return str(yaml.safe_dump(plain, default_flow_style=True, width=10**6, sort_keys=False)).split("\n...")[0].strip()


def _grouped(edge: float) -> str:
    """An end of a range: whole numbers in groups of three digits, very small and large ones as powers of ten."""
    return f"{int(edge):,}" if float(edge).is_integer() and abs(edge) < 1e12 else f"{edge:g}"


def _anchor(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def text() -> str:
    """The text of the page."""
    return Page().text()


def main() -> None:
    """Writes the page."""
    PATH.write_text(text())
    print(PATH)


if __name__ == "__main__":
    main()
