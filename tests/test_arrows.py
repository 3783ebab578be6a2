"""Arrows between the parts of the package point one way."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "dmd"
ROOMS = [  # from the top down: a room imports only rooms below it
    "stages",
    "train",
    "importers",
    "report",
    "methods",
    "sampling",
    "metrics",
    "data",
    "jobs",
    "models",
    "provenance",
    "config",
]
NOT = {  # although it lies below: methods and metrics do no I/O, and what draws images does not know who trained it
    "stages": {"stages"},
    "train": {"importers", "report"},
    "importers": {"report", "sampling"},
    "methods": {"metrics", "data", "jobs", "provenance"},
    "sampling": {"metrics"},
    "metrics": {"data", "jobs", "models", "provenance", "config"},
    "data": {"models"},
    "models": {"config"},
}
PURE = {"noise", "solvers", "schedulers", "call_schedulers"}  # of sampling: what methods may use
SHIM = "torchvision_operators"
FACES = {
    "__init__": {"sampling"},
    "status": {"jobs", "config"},
    "verify": {"jobs", "data", "provenance", "config"},
    SHIM: set(),
}  # of `__init__` when it is called
FORBIDDEN = {"snakemake", "workflow"}


def imported(path: Path) -> set[str]:
    """Dotted names a module imports, `from a import b` as a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_imports_follow_the_arrows():
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        allowed = FACES[part] if part in FACES else {*ROOMS[ROOMS.index(part) :], SHIM} - NOT.get(part, set())
        names = imported(path)
        parts = {name.split(".")[1] for name in names if name.startswith("dmd.")}
        assert parts <= allowed, f"{path} imports {parts - allowed}"
        assert not {name.split(".")[0] for name in names} & FORBIDDEN, path


def test_methods_use_the_maths_of_sampling_alone():
    used = {name.split(".")[2] for path in (PACKAGE / "methods").rglob("*.py") for name in imported(path)
            if name.startswith("dmd.sampling.")}  # fmt: skip
    assert used and used <= PURE


def test_every_stage_is_run_as_a_module():
    """dmd/stages holds what a rule, or a person, calls, and nothing else."""
    for path in (PACKAGE / "stages").glob("[!_]*.py"):
        text = path.read_text()
        assert "\ndef run(" in text or "\ndef main(" in text, path
        assert 'if __name__ == "__main__":' in text, path


def test_configuration_needs_no_torch():
    paths = [PACKAGE / f"{name}.py" for name in ("status", "jobs/experiment_progress", "jobs/job_status", "__init__")]
    for path in [*paths, *(PACKAGE / "config").glob("*.py")]:
        assert not any(each.split(".")[0] == "torch" for each in imported(path)), path


def test_methods_know_neither_each_other_nor_dicts_of_anything():
    methods = [path for path in (PACKAGE / "methods").glob("*.py") if path.stem not in ("__init__", "base")]
    assert {path.stem for path in methods} >= {"dmd", "denoising"}
    for path in methods:
        others = {f"dmd.methods.{other.stem}" for other in methods} - {f"dmd.methods.{path.stem}"}
        assert not {name for name in imported(path) if name.startswith(tuple(others))}, path
        classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
        assert all(ast.unparse(base).startswith("Method[") for each in classes for base in each.bases), path
    for room in ("methods", "train"):
        for path in (PACKAGE / room).rglob("*.py"):
            assert "dict[str, Any]" not in path.read_text(), path


def test_trainer_names_no_method():
    """What a method needs, it says through its interface."""
    methods = {path.stem for path in (PACKAGE / "methods").glob("*.py")} - {"__init__", "base", "counting", "memory"}
    assert {"dmd", "denoising"} <= methods
    for path in (PACKAGE / "train").glob("*.py"):
        assert not {name for name in imported(path) if name.startswith(tuple(f"dmd.methods.{one}" for one in methods))}
