"""The parameters of a stage's `run`, as its command line knows them."""

import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dmd.config.messages import faults
from dmd.config.section import Section, without_paths


def parameters(
    run: Callable[..., None],
) -> tuple[dict[str, inspect.Parameter], dict[str, inspect.Parameter]]:
    """Paths that a stage takes as flags, and numbers that it takes from its spec."""
    paths: dict[str, inspect.Parameter] = {}
    numbers: dict[str, inspect.Parameter] = {}
    for name, parameter in inspect.signature(run, eval_str=True).parameters.items():
        (paths if is_path(parameter.annotation) else numbers)[name] = parameter
    return paths, numbers


def is_path(annotation: Any) -> bool:
    """Whether a parameter is a path, several, or perhaps one."""
    return annotation is Path or any(is_path(part) for part in typing.get_args(annotation))


def is_list(annotation: Any) -> bool:
    """Whether a parameter takes several values."""
    return typing.get_origin(annotation) is list or any(is_list(part) for part in typing.get_args(annotation))


def is_section(annotation: Any) -> bool:
    """Whether a parameter is a section, or perhaps one."""
    if isinstance(annotation, type):
        return issubclass(annotation, Section)
    return any(is_section(part) for part in typing.get_args(annotation))


def arguments(
    spec: dict[str, Any], numbers: dict[str, inspect.Parameter], sections: tuple[type[Section], ...] = ()
) -> dict[str, Any]:
    """What `run` takes besides paths.

    A parameter that is a section takes all keys of the spec that are no other parameter; one that is perhaps a section
    takes the key of its name. Parameters that are keys of one of `sections` have its defaults.

    Raises:
        ValueError: a spec that lacks keys or has too many, or a section that cannot be used; one line for each fault.
    """
    whole = next(
        (
            name
            for name, parameter in numbers.items()
            if isinstance(parameter.annotation, type) and is_section(parameter.annotation)
        ),
        None,
    )
    known = {name: parameter for name, parameter in numbers.items() if name != whole}
    spec = _with_defaults(spec, known, sections)
    if whole is not None:
        rest = {key: value for key, value in spec.items() if key not in known}
        spec = {key: value for key, value in spec.items() if key in known} | {whole: rest}
    check_spec(spec, numbers)
    return {name: _value(name, value, numbers[name].annotation, place=name != whole) for name, value in spec.items()}


def _value(name: str, value: Any, annotation: Any, *, place: bool) -> Any:
    if not is_section(annotation):
        return value
    try:
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        raise ValueError(
            "; ".join(sorted(faults(error, annotation, f"--spec.{name}" if place else "--spec")))
        ) from None


def _with_defaults(
    spec: dict[str, Any], numbers: dict[str, inspect.Parameter], sections: tuple[type[Section], ...]
) -> dict[str, Any]:
    """A spec that says what it left out, as far as the sections know it, down to keys of keys."""
    whole = dict(spec)
    for section in sections:
        for name, field in section.model_fields.items():
            key = field.alias or name
            if key not in numbers or (key not in spec and field.is_required()):
                continue
            annotation: Any = typing.Annotated[field.annotation, field]
            adapter: TypeAdapter[Any] = TypeAdapter(annotation)
            try:
                value = adapter.validate_python(spec[key]) if key in spec else field.get_default()
            except ValidationError as error:
                raise ValueError("; ".join(sorted(faults(error, annotation, f"--spec.{key}")))) from None
            whole[key] = without_paths(adapter.dump_python(value, mode="json", by_alias=True))
    return whole


def check_spec(spec: dict[str, Any], numbers: dict[str, inspect.Parameter]) -> None:
    """ValueError names the numbers that a spec lacks, or has too many."""
    required = {name for name, parameter in numbers.items() if parameter.default is inspect.Parameter.empty}
    if missing := sorted(required - spec.keys()):
        raise ValueError(f"--spec lacks {', '.join(missing)}")
    if unknown := sorted(spec.keys() - numbers.keys()):
        raise ValueError(f"--spec has unknown keys {', '.join(unknown)}; known: {', '.join(sorted(numbers))}")
