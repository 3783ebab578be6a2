"""Whatever stands in a configuration, it is used or refused with a message that says where."""

import copy
import json
import math
import os
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmd import config
from dmd.config import Experiments
from dmd.config.rule_table import ARTIFACTS
from dmd.provenance.files import canonical_json

ROOT = Path(__file__).resolve().parents[2]
WHOLE = config.read_file(ROOT / "config.yaml")
CASES = int(os.environ.get("DMD_FUZZ_CASES", "300"))
BOUNDED = settings(
    max_examples=CASES,
    deadline=10_000,  # milliseconds
    derandomize="DMD_FUZZ_CASES" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)
NUMBERS = st.one_of(
    st.integers(-3, 100), st.integers(), st.floats(), st.sampled_from([2**31, 2**32, 2**64, 1e308, -0.0])
)
LEAVES = st.one_of(
    st.none(), st.booleans(), NUMBERS, st.text(max_size=8), st.sampled_from(["heun", "all", "5e-5", "../x"])
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | LEAVES, inner, max_size=3)
)


def small(*names: str) -> dict[str, Any]:
    """Some of the experiments that the repository ships, a table and a chart of the first, and an input."""
    points = [{"label": "a", "points": [[names[0]]]}]
    tables = {"demo": {"rows": [{"label": "a", "experiments": [names[0]]}]}}
    charts = {"calls": {"kind": "calls", "series": points}}
    inputs = dict(list(WHOLE["inputs"].items())[:1])
    kept = {name: WHOLE["experiments"][name] for name in names}
    return {"experiments": kept, "tables": tables, "charts": charts, "inputs": inputs}


SHIPPED = [
    small(*names)
    for names in (["digits", "digits-no-matching"], ["toy2d", "toy2d-start"], ["cifar10-cond"], ["sd15-cfg3"])
]


def places(value: Any) -> list[tuple[Any, ...]]:
    """Paths of all values within a value."""
    keys = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(key, *rest) for key, item in keys for rest in [(), *places(item)]]


PLACES = [places(whole) for whole in SHIPPED]
NAMES = sorted({str(place[-1]) for each in PLACES for place in each})


@st.composite
def edited(draw: st.DrawFn) -> dict[str, Any]:
    """A small configuration after one to three edits: another value, a key gone, a value that belongs elsewhere."""
    number = draw(st.integers(0, len(SHIPPED) - 1))
    whole = copy.deepcopy(SHIPPED[number])
    for _ in range(draw(st.integers(1, 3))):
        *path, key = draw(st.sampled_from(PLACES[number]))
        section: Any = whole
        for name in path:
            try:
                section = section[name]
            except (KeyError, IndexError, TypeError):
                break
        if not isinstance(section, dict):
            continue
        what = draw(st.integers(0, 4))
        if what == 0:
            section.pop(key, None)
        elif what == 1:
            section[draw(st.sampled_from(NAMES))] = draw(VALUES)
        elif what == 2:
            other: Any = SHIPPED[number]
            for name in draw(st.sampled_from(PLACES[number])):
                other = other[name]
            section[key] = copy.deepcopy(other)
        else:
            section[key] = draw(VALUES if what == 3 else NUMBERS)
    return whole


def used(written: Any) -> bool:
    """Whether a configuration is used, every spec and path of it; if not, it was refused as it should."""
    try:
        found = config.resolve(written)
    except config.ConfigError as error:
        assert ": " in str(error) and len(str(error)) > 8, error
        return False
    experiments = Experiments(found)
    for name in experiments.merged:
        for rule in ARTIFACTS:
            try:
                assert json.loads(canonical_json(experiments.spec(name, rule, (0, 0)))) is not None
                assert experiments.owner(name, rule) in experiments.merged
                path = Path(experiments.path(name, rule, (0, 0)))
                assert not path.is_absolute() and ".." not in path.parts
            except config.ConfigError as error:
                assert str(error)
    return True


def test_shipped_experiments_are_used():
    assert all(used(whole) for whole in SHIPPED)


@BOUNDED
@given(edited())
def test_edited_configuration_is_used_or_refused_with_a_message(written: dict[str, Any]):
    used(written)


@BOUNDED
@given(st.one_of(VALUES, st.fixed_dictionaries({"experiments": VALUES}, optional={"inputs": VALUES, "tables": VALUES})))
def test_arbitrary_values_are_refused_with_a_message(written: Any):
    used(written)


def test_numbers_that_are_none_are_refused_wherever_they_stand():
    for value in (math.nan, math.inf, -math.inf):
        for place in PLACES[0]:
            whole: Any = copy.deepcopy(SHIPPED[0])
            section = whole
            for name in place[:-1]:
                section = section[name]
            if isinstance(section[place[-1]], float):
                section[place[-1]] = value
                assert not used(whole), place
