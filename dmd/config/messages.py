"""Faults of a configuration as lines: the place, the value, what is allowed, and the name that was perhaps meant."""

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

TAGS = ("kind", "name")  # keys that say which section of several a mapping is
_OF_KEY = re.compile(r"^([a-z]\w*(?:\[\d+\])?(?:\.[a-z]\w*(?:\[\d+\])?)*): ", re.S)
_LIMITS = {  # type of an error -> its limit in the context, and words before it
    "greater_than_equal": ("ge", "less than the minimum of"),
    "greater_than": ("gt", "not greater than"),
    "less_than_equal": ("le", "greater than the maximum of"),
    "less_than": ("lt", "not less than"),
}
_WANTED = {
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
    """ConfigError with all faults, each once and sorted, if there are any."""
    if lines := sorted(set(faults)):
        raise ConfigError("\n".join(lines))


def suggestion(name: str, known: Iterable[str]) -> str:
    """` (did you mean "x"?)` where a known name is close, else nothing."""
    return "".join(f' (did you mean "{close}"?)' for close in difflib.get_close_matches(name, list(known), n=1))


def unknown_experiment(name: str, known: Iterable[str]) -> str:
    """The message for a name that is no experiment."""
    return f'unknown experiment "{name}"{suggestion(name, known)}; experiments are: {", ".join(sorted(known))}'


def faults(error: ValidationError, model: Any, place: str = "") -> Iterator[str]:
    """One line for each fault that pydantic found in a value of `model`, a section or a union of sections.

    Args:
        place: where the value stands in the configuration.
    """
    for found in error.errors(include_url=False):
        if found["type"] == "too_short" and len(found["input"]) >= found["ctx"]["min_length"]:
            continue  # its items have faults, which are named; pydantic then counts none of them
        yield from _described(*_place(model, found["loc"], place), found)


def _place(annotation: Any, loc: Sequence[int | str], place: str) -> tuple[str, Any, Any]:
    """Where a fault is, without pydantic's tags of unions; the section that has it; the annotation of the value."""
    outer: Any = None
    for part in loc:
        cases = _cases(annotation)
        sections = [each for each in cases if _is_section(each)]
        if len(sections) > 1 or typing.get_origin(annotation) is typing.Annotated:
            if tagged := [each for each in sections if part in _tags(each)]:
                annotation = tagged[0]
                continue
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else part
        outer, annotation = (cases[0], _within(cases[0], part)) if cases else (None, Any)
    return place, outer, annotation


def _cases(annotation: Any) -> list[Any]:
    """The members of a union, None apart; an annotation that is no union is its only member."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _cases(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [case for each in typing.get_args(annotation) for case in _cases(each)]
    return [] if annotation is type(None) else [annotation]


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _tags(section: type[BaseModel]) -> tuple[Any, ...]:
    """What the tag of a section may be."""
    for tag in TAGS:
        if tag in section.model_fields:
            return typing.get_args(section.model_fields[tag].annotation)
    return ()


def _within(annotation: Any, part: int | str) -> Any:
    """The annotation of a part of a value."""
    if _is_section(annotation):
        fields = {field.alias or name: field for name, field in annotation.model_fields.items()}
        if part not in fields:
            return Any
        field = fields[part]
        return typing.Annotated[field.annotation, field] if field.discriminator else field.annotation
    inner = [each for each in typing.get_args(annotation) if each is not Ellipsis]
    return inner[-1] if inner else Any


def keys(section: type[BaseModel]) -> list[str]:
    """The keys of a section as they are written."""
    return [field.alias or name for name, field in section.model_fields.items()]


def _described(place: str, section: Any, annotation: Any, error: ErrorDetails) -> Iterator[str]:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    outer, _, key = place.rpartition(".")
    if kind == "value_error":
        for line in str(context["error"]).split("\n"):
            yield f"{place}.{line}" if _OF_KEY.match(line) and place else f"{place}: {line}" if place else line
    elif kind == "extra_forbidden":
        known = keys(section)
        yield f'{outer or "config"}: unknown key "{key}"{suggestion(key, known)}; keys are: {", ".join(known)}'
    elif kind == "missing":
        yield f'{outer or "config"}: lacks the key "{key}", which has no default'
    elif kind == "union_tag_not_found":
        tag = context["discriminator"].strip("'")
        yield f'{place}: lacks the key "{tag}", which says what it is: {", ".join(_all_tags(annotation))}'
    elif kind == "union_tag_invalid":
        yield f"{place}.{context['discriminator'].strip(chr(39))}: {_choice(context['tag'], _all_tags(annotation))}"
    elif kind == "literal_error":
        yield f"{place}: {_choice(value, _values(annotation))}"
    elif kind in _NUMBERS and isinstance(value, str) and (number := as_number(value)):
        yield f"{place}: '{value}' is a string to YAML, not a number; write {number}"
    elif kind in _WANTED:
        yield f"{place or 'config'}: {_shown(value)} is not {_WANTED[kind]}"
    elif kind in _LIMITS:
        limit, words = _LIMITS[kind]
        edge = context[limit]
        yield f"{place}: {_shown(value)} is {words} {f'{edge:g}' if isinstance(edge, float) else edge}"
    elif kind == "string_pattern_mismatch":
        yield f"{place}: {value!r} does not match {context['pattern']!r}"
    elif kind in ("too_short", "string_too_short"):
        num = context.get("min_length")
        yield f"{place}: {_shown(value)} is too short, {num} {'is' if num == 1 else 'are'} the least"
    else:
        yield f"{place or 'config'}: {_shown(value)}: {error['msg']}"


def _all_tags(model: Any) -> list[str]:
    return [tag for case in _cases(model) if _is_section(case) for tag in _tags(case)]


def _values(annotation: Any) -> list[Any]:
    return [value for case in _cases(annotation) for value in typing.get_args(case)]


def _choice(value: Any, allowed: Sequence[Any]) -> str:
    close = suggestion(value, [each for each in allowed if isinstance(each, str)]) if isinstance(value, str) else ""
    return f"{_shown(value)} is not one of {', '.join(map(repr, allowed))}{close}"


def _shown(value: Any) -> str:
    """A value, shortened where it is long."""
    if isinstance(value, Mapping):
        return f"a mapping of {', '.join(map(str, list(value)[:5])) or 'nothing'}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def as_number(text: str) -> str | None:
    """`text` spelt as YAML reads a number (1000, or a dot and a signed exponent), None if it is no number."""
    try:
        value = float(text)
    except ValueError:
        return None
    if value != value or value in (float("inf"), float("-inf")):
        return None
    whole = value.is_integer() and abs(value) < 1e9
    return yaml.safe_dump(int(value) if whole else value).split("\n")[0]
