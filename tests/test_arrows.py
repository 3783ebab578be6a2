"""Arrows between the parts of the package point one way."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "dmd"
ALLOWED = {
    "diffusion": {"diffusion", "torchvision_operators"},
    "networks": {"networks", "torchvision_operators"},
    "methods": {"methods", "diffusion", "networks"},
    "metrics": {"metrics", "torchvision_operators"},
    "artifacts": {"artifacts", "config"},
    "loading": {"artifacts", "diffusion", "networks"},
    "sampler": {"loading", "artifacts", "config", "diffusion", "default_solver"},
    "default_solver": {"diffusion"},
    "text_sampler": {"sampler", "loading"},
    "stages": {
        "stages",
        "methods",
        "metrics",
        "artifacts",
        "diffusion",
        "networks",
        "config",
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
    paths = [PACKAGE / f"{name}.py" for name in ("status", "progress", "job_log", "__init__", "methods/phases")]
    for path in [*paths, PACKAGE / "stages" / "section_numbers.py", *(PACKAGE / "config").glob("*.py")]:
        assert not any(each.split(".")[0] == "torch" for each in imported(path)), path
