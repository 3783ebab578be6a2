"""The parameters of a stage's `run`, as its command line knows them."""

import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any


def parameters(
    run: Callable[..., None],
) -> tuple[dict[str, inspect.Parameter], dict[str, inspect.Parameter]]:
    """Paths that a stage takes as flags, and numbers that it takes from its spec."""
    paths: dict[str, inspect.Parameter] = {}
    numbers: dict[str, inspect.Parameter] = {}
    for name, parameter in inspect.signature(run, eval_str=True).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:  # **numbers: Unpack[a TypedDict]
            section = typing.get_args(parameter.annotation)[0]
            for key in section.__required_keys__ | section.__optional_keys__:
                default = inspect.Parameter.empty if key in section.__required_keys__ else None
                numbers[key] = inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default)
        else:
            (paths if is_path(parameter.annotation) else numbers)[name] = parameter
    return paths, numbers


def is_path(annotation: Any) -> bool:
    """Whether a parameter is a path, several, or perhaps one."""
    return annotation is Path or any(is_path(part) for part in typing.get_args(annotation))


def is_list(annotation: Any) -> bool:
    """Whether a parameter takes several values."""
    return typing.get_origin(annotation) is list or any(is_list(part) for part in typing.get_args(annotation))


def check_spec(spec: dict[str, Any], numbers: dict[str, inspect.Parameter]) -> None:
    """ValueError names the numbers that a spec lacks, or has too many."""
    required = {name for name, parameter in numbers.items() if parameter.default is inspect.Parameter.empty}
    if missing := sorted(required - spec.keys()):
        raise ValueError(f"--spec lacks {', '.join(missing)}")
    if unknown := sorted(spec.keys() - numbers.keys()):
        raise ValueError(f"--spec has unknown keys {', '.join(unknown)}; known: {', '.join(sorted(numbers))}")
