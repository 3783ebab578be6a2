"""Arrows between the parts of the package point one way."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "dmd"
ALLOWED = {
    "diffusion": {"diffusion", "torchvision_operators"},
    "networks": {"networks", "torchvision_operators"},
    "methods": {"methods", "config", "diffusion", "networks"},
    "train": {"train", "methods", "config", "artifacts", "diffusion", "networks", "loading"},  # and no stage
    "metrics": {"metrics", "torchvision_operators"},
    "artifacts": {"artifacts", "config"},
    "loading": {"artifacts", "diffusion", "networks"},
    "sampler": {"loading", "artifacts", "config", "diffusion", "default_solver"},
    "default_solver": {"diffusion", "loading"},
    "text_sampler": {"sampler", "loading"},
    "stages": {
        "stages",
        "train",
        "methods",
        "config",
        "metrics",
        "artifacts",
        "diffusion",
        "networks",
        "torchvision_operators",
        "loading",
        "sampler",
    },
    "torchvision_operators": set(),
    "config": {"config"},
    "job_log": set(),
    "progress": {"config", "job_log"},
    "status": {"config", "progress"},
    "__init__": {"sampler", "text_sampler"},  # inside load, when it is called
}
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
        names = imported(path)
        parts = {name.split(".")[1] for name in names if name.startswith("dmd.")}
        assert parts <= ALLOWED[part], f"{path} imports {parts - ALLOWED[part]}"
        assert not {name.split(".")[0] for name in names} & FORBIDDEN, path


def test_configuration_needs_no_torch():
    paths = [PACKAGE / f"{name}.py" for name in ("status", "progress", "job_log", "__init__")]
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
