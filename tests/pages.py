"""What README.md and the pages of docs/ have: links, headings, code, examples."""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from dmd.config import read_file

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def prose(path: Path) -> str:
    """A page without its blocks of code."""
    text = FENCE.sub("", path.read_text())
    return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


def links(path: Path) -> list[str]:
    """Targets of links and images."""
    return LINK.findall(re.sub(r"`[^`]*`", "", prose(path)))


def anchors(path: Path) -> list[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.M)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def code(path: Path) -> list[str]:
    """Lines of indented blocks, and all that stands between backticks."""
    text = FENCE.sub("", path.read_text())
    blocks = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    return blocks + re.findall(r"`([^`]+)`", prose(path).replace("\n", " "))


def examples(path: Path) -> Iterator[str]:
    """Blocks of YAML; tests/methods/test_methods_page.py runs those of Python."""
    for language, block in FENCE.findall(path.read_text()):
        assert language in ("yaml", "python"), f"{path}: a fenced block of {language!r}"
        if language == "yaml":
            yield textwrap.dedent(block)


def configuration() -> dict[str, Any]:
    """config.yaml with every example of the pages in the part of the file that it belongs to."""
    whole = read_file(ROOT / "config.yaml")
    whole["experiments"]["example-reference"] = {"extends": "shapes"}
    for block in (block for path in PAGES for block in examples(path)):
        if block.startswith("teacher:"):  # one example a line
            for number, line in enumerate(block.splitlines()):
                parent = "sd15-cfg3" if "stable-diffusion" in line else "cifar10-cond"
                whole["experiments"][f"example-teacher-{number}"] = {"extends": parent, **yaml.safe_load(line)}
            continue
        for name, value in yaml.safe_load(block).items():
            if name in ("dataset", "reference"):
                whole["experiments"]["example-reference"][name] = value
            elif name == "storage":
                whole[name] = value
            else:
                whole["tables" if "rows" in value else "experiments"][name] = value
    return whole
