"""docs/methods.md: its example trains, and its tables say how many passes the methods make and what they reach."""

import csv
import re
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

from dmd.config.training import Distill
from dmd.methods.base import Facts
from dmd.models.student_calls import Calls
from dmd.train.data import Stream
from dmd.train.trainer import assemble, loader, plan
from tests.methods.test_every_method import FACTS, METHODS, denoiser, streams
from tests.pages import ROOT
from tests.trainings import WHOLE
from workflow.scripts.stand_in import image_passes

PAGE = (ROOT / "docs" / "methods.md").read_text()
UPDATES = 3
DEFAULTS: dict[str, dict[str, Any]] = {  # keys that a method needs, or that the page names
    "dmd": {"batch_size": None, "matching_batch_size": 8, "regression_batch_size": 8},
    "tdm": {"calls": 4},
    "progressive": {"phases": [{"updates": UPDATES, "steps": 1}]},
    "ufogen": {"reconstruction_weight": 0.5},
    "rectified-flow": {"objective": "reflow"},
    "ect": {"stage_updates": 2},
    "tract": {"levels": 8, "phases": [{"updates": UPDATES, "groups": 1}]},
    "boot": {"levels": 9, "boundary_weight": 1.0, "boundary_batch_size": 8},
    "ctm": {"solver_steps": 1},
    "imm": {"batch_size": 2, "particles": 4},
}


@pytest.fixture
def example() -> Iterator[tuple[Any, Any]]:
    """The two modules of the page: 30 lines of code besides imports."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    lines = [line for block in blocks for line in block.splitlines() if line and "import " not in line]
    assert len(blocks) == 2 and len(lines) <= 30
    names = ("dmd.config.methods.mine", "dmd.methods.mine")
    modules = []
    for name, block in zip(names, blocks, strict=True):
        sys.modules[name] = module = types.ModuleType(name)
        sys.modules[name.rpartition(".")[0]].mine = module
        exec(compile(block, name, "exec"), module.__dict__)
        modules.append(module)
    yield modules[0], modules[1]
    for name in names:
        del sys.modules[name]
        delattr(sys.modules[name.rpartition(".")[0]], "mine")


def test_example_of_the_page_trains(example):
    section, method = example

    class Training(Distill):
        method: section.Mine  # type: ignore[name-defined]

    keys = {"optimisers": {"student": {"learning_rate": 0.02}}, "schedule": {"warmup": 0}}
    training = Training.model_validate(
        {"method": {"name": "mine", "batch_size": 6, "phases": [{"updates": 60}]}} | keys
    )
    facts = Facts(**{**FACTS.__dict__, "sigma_max": 80.0})
    found = assemble(training, {"student": denoiser(0)}, facts, distances={}, split=WHOLE)
    assert type(found.method) is method.METHOD and found.method.sampling() == Calls((80.0,))
    phases, _ = plan(training.method)
    rows: dict[str, Stream] = streams()
    ready = loader(found, rows, phases, stage="distill")
    losses = [found.update(phases.clock(update), ready.take(update))["loss/regression"] for update in range(60)]
    ready.close()
    assert losses[-1] < 0.5 * losses[0]


def documented() -> dict[str, float]:
    """The first number of the column "passes", by method."""
    cells = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| `")]
    rows = {row[0].strip("`"): row for row in cells if len(row) == 6}
    return {name: float(re.findall(r"[\d.]+", row[3])[0]) for name, row in rows.items()}


def passes(method: dict[str, Any]) -> float:
    section = {"name": method["name"], "batch_size": 8, "phases": [{"updates": UPDATES}]} | method
    section = {key: value for key, value in section.items() if value is not None}
    return image_passes(Distill.model_validate({"method": section})) / UPDATES / 8


def test_table_of_the_page_has_the_passes_of_every_method():
    found = documented()
    assert set(found) == {each["name"] for each in METHODS.values()} | {"denoising", "autoencoding", "contrastive"}
    for name in set(found) - {"denoising", "autoencoding", "contrastive"}:
        assert passes({"name": name} | DEFAULTS.get(name, {})) == pytest.approx(found[name], rel=0.05), name  # draws
    assert passes({"name": "dmd2", "adversarial": {}}) == 40 and passes({"name": "sid", "adversarial": {}}) == 15


COLUMNS = [  # columns of the report in a cell of the page, unit, and how far rounding may change them
    (("excess", "distance_std"), 1, 0.0051),
    (("kid", "kid_std"), 1, 0.0051),
    (("recall",), 1, 0.0051),
    (("accuracy",), 100, 0.0051),
    (("passes",), 1, 0.0051),
    (("seconds",), 1, 0.51),
]


def test_figures_of_the_page_are_those_of_the_report():
    with (ROOT / "bench" / "results" / "methods-report.csv").open(newline="") as file:
        expected = {row["label"]: row for row in csv.DictReader(file)}
    _, _, after = PAGE.partition("| method | over the floor | minus DMD [95 %] |")
    lines = after.partition("\n\n")[0].splitlines()[2:]
    cells = {row[0]: row[1:] for row in ([each.strip() for each in line.strip("|").split("|")] for line in lines)}
    assert cells.keys() == expected.keys()
    for label, row in cells.items():
        for cell, (names, unit, error) in zip(row[:1] + row[2:], COLUMNS, strict=True):
            figures = [float(each) / unit for each in re.findall(r"[\d.]+", cell)]
            values = [float(expected[label][name]) for name in names if expected[label][name]]
            assert figures == pytest.approx(values, abs=error), (label, names)
    report = (ROOT / "bench" / "results" / "methods-report.md").read_text()
    found = {label: row[1] for label, row in cells.items() if row[1]}
    differences = dict(re.findall(r"^\| (.+) - DMD \| 3 \| (\S+ \[\S+, \S+\]) \|", report, re.M))
    assert found.keys() == differences.keys() == cells.keys() - {"DMD", "teacher, 35 calls"}
    for label, text in found.items():
        one, other = (
            [float(each) for each in re.findall(r"-?[\d.]+(?:e-\d+)?", cell)] for cell in (text, differences[label])
        )
        assert one == pytest.approx(other, abs=0.0051), label
    assert list(cells) == sorted(cells, key=lambda label: float(expected[label]["excess"]))
