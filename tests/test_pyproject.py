"""pyproject.toml names the packages that the code imports, and no others."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

from dmd.jobs import job

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OWN = {"dmd", "workflow", "bench", "tests"}
PROGRAMS = {"snakemake"}  # run, not imported
EXTRA_PROGRAMS = {"snakemake-executor-plugin-slurm", "onnxscript", "tensorboard"}  # snakemake, torch.onnx, torch.utils
DEV_PROGRAMS = {"mypy", "pandas-stubs", "pytest-xdist", "ruff", "snakefmt", "types-jsonschema", "types-pyyaml"}
SMK_IMPORT = re.compile(r"^\s*(?:import|from)\s+(\w+)", re.MULTILINE)


def names(requirements: list[str]) -> set[str]:
    """Distributions that requirements name."""
    return {normalised(re.split(r"[^\w.-]", requirement)[0]) for requirement in requirements}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


BASE = names(PROJECT["dependencies"])
EXTRAS = {extra: names(requirements) for extra, requirements in PROJECT["optional-dependencies"].items()}
OPTIONAL = set().union(*(packages for extra, packages in EXTRAS.items() if extra != "dev"))


@cache
def distributions() -> dict[str, list[str]]:
    return {module: [normalised(one) for one in found] for module, found in packages_distributions().items()}


def third_party(modules: Iterator[str]) -> set[str]:
    """Distributions of modules that are neither Python's nor ours."""
    tops = {module.split(".")[0] for module in modules} - sys.stdlib_module_names - OWN
    return {"snakemake" if top.startswith("snakemake_interface") else distributions()[top][0] for top in tops}


def imported(node: ast.AST) -> Iterator[str]:
    """Modules that import statements below a node name."""
    for each in ast.walk(node):
        if isinstance(each, ast.Import):
            yield from (alias.name for alias in each.names)
        elif isinstance(each, ast.ImportFrom) and each.module:
            yield each.module


def sources(*trees: str) -> Iterator[Path]:
    return (path for tree in trees for path in sorted((ROOT / tree).rglob("*.py")))


def modules_of(*trees: str) -> Iterator[str]:
    for path in sources(*trees):
        yield from imported(ast.parse(path.read_text()))


def rule_modules() -> Iterator[str]:
    for path in [ROOT / "Snakefile", *(ROOT / "workflow").rglob("*.smk")]:
        yield from SMK_IMPORT.findall(path.read_text())


def test_dependencies_and_extras_are_what_the_package_and_the_workflow_import():
    used = third_party(modules_of("dmd", "workflow")) | third_party(rule_modules()) | PROGRAMS | EXTRA_PROGRAMS
    assert not BASE & OPTIONAL
    assert used - BASE - OPTIONAL == set(), "imported, but not in pyproject.toml"
    assert (BASE | OPTIONAL) - used == set(), "in pyproject.toml, but not imported"


def test_extras_are_imported_only_inside_the_functions_that_need_them():
    for path in sources("dmd", "workflow"):
        tree = ast.parse(path.read_text())
        at_once = (each for each in tree.body if isinstance(each, ast.Import | ast.ImportFrom))
        outer = third_party(module for each in at_once for module in imported(each))
        assert not outer & OPTIONAL, path


def test_message_about_a_missing_package_names_its_extra():
    assert {name: extra for extra in EXTRAS if extra not in ("dev", "slurm") for name in EXTRAS[extra]} == job.EXTRAS


def test_extra_dev_is_what_tests_and_benches_import_beside_them():
    used = third_party(modules_of("tests", "bench")) | DEV_PROGRAMS
    assert used - BASE - OPTIONAL == EXTRAS["dev"]


def test_every_package_is_pinned():
    pins = names([line for line in (ROOT / "envs/requirements.txt").read_text().splitlines() if line[:1].isalpha()])
    assert pins >= BASE | OPTIONAL | EXTRAS["dev"]
