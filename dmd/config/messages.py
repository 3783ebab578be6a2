"""Formats faults of a configuration as lines with the key, its value, the allowed values and a suggestion."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

TAGS = ("kind", "name")  # keys that choose one section of a union
_OF_KEY = re.compile(r"^([a-z]\w*(?:\[\d+\])?(?:\.[a-z]\w*(?:\[\d+\])?)*): ", re.S)
_LIMITS = {  # type of an error -> key of the limit in its context, words before the limit
    "greater_than_equal": ("ge", "less than the minimum of"),
    "greater_than": ("gt", "not greater than"),
    "less_than_equal": ("le", "greater than the maximum of"),
    "less_than": ("lt", "not less than"),
}
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
_NUMBERS = ("int_type", "float_type", "int_parsing", "float_parsing")


class ConfigError(ValueError):
    """The configuration cannot be used; the message has one line per fault and names key and value."""


def raise_faults(faults: Iterable[str]) -> None:
    """Raises ConfigError with all faults, sorted and each once, if there are any."""
    if lines := sorted(set(faults)):
        raise ConfigError("\n".join(lines))


def suggestion(name: str, known: Iterable[str]) -> str:
    """` (did you mean "x"?)` if a known name is close, else nothing."""
    return "".join(f' (did you mean "{close}"?)' for close in difflib.get_close_matches(name, list(known), n=1))


def unknown_experiment(name: str, known: Iterable[str]) -> str:
    """The message for a name that is not an experiment."""
    return f'unknown experiment "{name}"{suggestion(name, known)}; experiments are: {", ".join(sorted(known))}'


def faults(error: ValidationError, model: Any, key: str = "") -> Iterator[str]:
    """One line per fault in a value of `model`, a section or a union of sections.

    Args:
        key: full key of the value in the configuration.
    """
    for fault in error.errors(include_url=False):
        if fault["type"] == "too_short" and len(fault["input"]) >= fault["ctx"]["min_length"]:
            continue  # pydantic does not count items with faults, which have lines of their own
        yield from _lines(*_locate(model, fault["loc"], key), fault)


def _locate(annotation: Any, loc: Sequence[int | str], key: str) -> tuple[str, Any, Any]:
    """Full key of a fault (without pydantic's union tags), the section that holds it, the annotation of its value."""
    outer: Any = None
    for part in loc:
        cases = _cases(annotation)
        sections = [case for case in cases if _is_section(case)]
        if len(sections) > 1 or typing.get_origin(annotation) is typing.Annotated:
            if tagged := [section for section in sections if part in _tags(section)]:
                annotation = tagged[0]
                continue
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
        outer, annotation = (cases[0], _within(cases[0], part)) if cases else (None, Any)
    return key, outer, annotation


def _cases(annotation: Any) -> list[Any]:
    """The members of a union, without None; for any other annotation, the annotation alone."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _cases(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [case for member in typing.get_args(annotation) for case in _cases(member)]
    return [] if annotation is type(None) else [annotation]


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _tags(section: type[BaseModel]) -> tuple[Any, ...]:
    """Allowed tags of a section."""
    for tag in TAGS:
        if tag in section.model_fields:
            return typing.get_args(section.model_fields[tag].annotation)
    return ()


def _within(annotation: Any, part: int | str) -> Any:
    """The annotation of a key or item of a value."""
    if _is_section(annotation):
        fields = {field.alias or name: field for name, field in annotation.model_fields.items()}
        if part not in fields:
            return Any
        field = fields[part]
        return typing.Annotated[field.annotation, field] if field.discriminator else field.annotation
    inner = [argument for argument in typing.get_args(annotation) if argument is not Ellipsis]
    return inner[-1] if inner else Any


def keys(section: type[BaseModel]) -> list[str]:
    """The keys of a section as written in YAML."""
    return [field.alias or name for name, field in section.model_fields.items()]


def _lines(full_key: str, section: Any, annotation: Any, error: ErrorDetails) -> Iterator[str]:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    outer, _, key = full_key.rpartition(".")
    if kind == "value_error":
        for line in str(context["error"]).split("\n"):
            yield (
                f"{full_key}.{line}"
                if _OF_KEY.match(line) and full_key
                else f"{full_key}: {line}"
                if full_key
                else line
            )
    elif kind == "extra_forbidden":
        known = keys(section)
        yield f'{outer or "config"}: unknown key "{key}"{suggestion(key, known)}; keys are: {", ".join(known)}'
    elif kind == "missing":
        yield f'{outer or "config"}: lacks the key "{key}", which has no default'
    elif kind == "union_tag_not_found":
        tag = context["discriminator"].strip("'")
        yield f'{full_key}: lacks the key "{tag}", which is one of {", ".join(_all_tags(annotation))}'
    elif kind == "union_tag_invalid":
        yield f"{full_key}.{context['discriminator'].strip(chr(39))}: {_choice(context['tag'], _all_tags(annotation))}"
    elif kind == "literal_error":
        yield f"{full_key}: {_choice(value, _values(annotation))}"
    elif kind in _NUMBERS and isinstance(value, str) and (number := as_number(value)):
        yield f"{full_key}: '{value}' is a string to YAML, not a number; write {number}"
    elif kind in _EXPECTED:
        yield f"{full_key or 'config'}: {_shown(value)} is not {_EXPECTED[kind]}"
    elif kind in _LIMITS:
        limit, words = _LIMITS[kind]
        edge = context[limit]
        yield f"{full_key}: {_shown(value)} is {words} {f'{edge:g}' if isinstance(edge, float) else edge}"
    elif kind == "string_pattern_mismatch":
        yield f"{full_key}: {value!r} does not match {context['pattern']!r}"
    elif kind in ("too_short", "string_too_short"):
        num = context.get("min_length")
        yield f"{full_key}: {_shown(value)} is too short, the minimum is {num}"
    else:
        yield f"{full_key or 'config'}: {_shown(value)}: {error['msg']}"


def _all_tags(model: Any) -> list[str]:
    return [tag for case in _cases(model) if _is_section(case) for tag in _tags(case)]


def _values(annotation: Any) -> list[Any]:
    return [value for case in _cases(annotation) for value in typing.get_args(case)]


def _choice(value: Any, allowed: Sequence[Any]) -> str:
    close = suggestion(value, [name for name in allowed if isinstance(name, str)]) if isinstance(value, str) else ""
    return f"{_shown(value)} is not one of {', '.join(map(repr, allowed))}{close}"


def _shown(value: Any) -> str:
    """A value, shortened if it is long."""
    if isinstance(value, Mapping):
        return f"a mapping of {', '.join(map(str, list(value)[:5])) or 'nothing'}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def as_number(text: str) -> str | None:
    """`text` as a number in YAML's spelling (1000, 5.0e-05), or None if it is not a number."""
    try:
        value = float(text)
    except ValueError:
        return None
    if value != value or value in (float("inf"), float("-inf")):
        return None
    is_integer = value.is_integer() and abs(value) < 1e9
    return yaml.safe_dump(int(value) if is_integer else value).split("\n")[0]
