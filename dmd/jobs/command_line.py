"""The command line of a stage, made from the parameters of its `run`: paths are flags, all others a JSON spec."""

import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dmd.config.messages import faults
from dmd.config.section_base import Section, without_paths


def parameters(
    run: Callable[..., None],
) -> tuple[dict[str, inspect.Parameter], dict[str, inspect.Parameter]]:
    """The parameters that are paths, which a stage takes as flags, and all others, which it takes from its spec."""
    paths: dict[str, inspect.Parameter] = {}
    spec_parameters: dict[str, inspect.Parameter] = {}
    for name, parameter in inspect.signature(run, eval_str=True).parameters.items():
        (paths if is_path(parameter.annotation) else spec_parameters)[name] = parameter
    return paths, spec_parameters


def is_path(annotation: Any) -> bool:
    """Whether a parameter is a path, a list of paths, or may be one of these."""
    return annotation is Path or any(is_path(part) for part in typing.get_args(annotation))


def is_list(annotation: Any) -> bool:
    """Whether a parameter takes several values."""
    return typing.get_origin(annotation) is list or any(is_list(part) for part in typing.get_args(annotation))


def is_section(annotation: Any) -> bool:
    """Whether a parameter is a section, or may be one."""
    if isinstance(annotation, type):
        return issubclass(annotation, Section)
    return any(is_section(part) for part in typing.get_args(annotation))


def arguments(
    spec: dict[str, Any], spec_parameters: dict[str, inspect.Parameter], sections: tuple[type[Section], ...] = ()
) -> dict[str, Any]:
    """The arguments of `run` besides paths.

    A parameter of type `Section` gets all keys of the spec that are not other parameters. One of type
    `Section | None` gets the key of its name. Parameters that are keys of one of `sections` have its defaults.

    Raises:
        ValueError: the spec lacks keys or has unknown ones, or a section cannot be used; the message names each fault.
    """
    section_name = next(
        (
            name
            for name, parameter in spec_parameters.items()
            if isinstance(parameter.annotation, type) and is_section(parameter.annotation)
        ),
        None,
    )
    known = {name: parameter for name, parameter in spec_parameters.items() if name != section_name}
    spec = _with_defaults(spec, known, sections)
    if section_name is not None:
        section = {key: value for key, value in spec.items() if key not in known}
        spec = {key: value for key, value in spec.items() if key in known} | {section_name: section}
    check_spec(spec, spec_parameters)
    return {
        name: _value(value, spec_parameters[name].annotation, "--spec" if name == section_name else f"--spec.{name}")
        for name, value in spec.items()
    }


def _value(value: Any, annotation: Any, key: str) -> Any:
    """A value of the spec in the type that `run` takes; messages name it `key`."""
    if not is_section(annotation):
        return value
    try:
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        raise ValueError("; ".join(sorted(faults(error, annotation, key)))) from None


def _with_defaults(
    spec: dict[str, Any], spec_parameters: dict[str, inspect.Parameter], sections: tuple[type[Section], ...]
) -> dict[str, Any]:
    """The spec with missing keys, nested ones included, filled in from the defaults of `sections`."""
    filled = dict(spec)
    for section in sections:
        for name, field in section.model_fields.items():
            key = field.alias or name
            if key not in spec_parameters or (key not in spec and field.is_required()):
                continue
            annotation: Any = typing.Annotated[field.annotation, field]
            adapter: TypeAdapter[Any] = TypeAdapter(annotation)
            try:
                value = adapter.validate_python(spec[key]) if key in spec else field.get_default()
            except ValidationError as error:
                raise ValueError("; ".join(sorted(faults(error, annotation, f"--spec.{key}")))) from None
            filled[key] = without_paths(adapter.dump_python(value, mode="json", by_alias=True))
    return filled


def check_spec(spec: dict[str, Any], spec_parameters: dict[str, inspect.Parameter]) -> None:
    """Raises ValueError for keys that a spec lacks or that `run` does not know."""
    required = {name for name, parameter in spec_parameters.items() if parameter.default is inspect.Parameter.empty}
    if missing := sorted(required - spec.keys()):
        raise ValueError(f"--spec lacks {', '.join(missing)}")
    if unknown := sorted(spec.keys() - spec_parameters.keys()):
        raise ValueError(f"--spec has unknown keys {', '.join(unknown)}; known: {', '.join(sorted(spec_parameters))}")
