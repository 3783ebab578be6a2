"""Files and folders from outside that the configuration needs and that do not exist yet, with what is known of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dmd.config import printing
from dmd.config.experiment import Input
from dmd.config.inheritance import Configuration
from dmd.config.model_folders import lacking
from dmd.config.section_base import SOURCES, Section, nested_sections
from dmd.config.sections import IdxDataset

TABLES = ("labels", "captions")  # keys of a dataset that may name a .csv file


@dataclass(frozen=True)
class Missing:
    """A path from outside where nothing lies: one that the configuration names, or a part of a folder that it names.

    Attributes:
        keys: where experiments name it, such as "sd15-cfg3.teacher.folder".
        sha256: the digest that these keys pin, or else the entry, or None.
        entry: the entry of section `inputs` that describes it, or None.
        folder: the folder that lacks it, if it is a part of one; `sha256` and `entry` are those of the folder.
    """

    path: str
    keys: tuple[str, ...]
    sha256: str | None
    entry: Input | None
    folder: str | None = None

    @property
    def is_downloaded(self) -> bool:
        """Whether a run downloads it; otherwise someone has to put it there."""
        return self.entry is not None and self.entry.url is not None and self.folder is None

    def lines(self) -> Iterator[str]:
        """What it is, its size, licence and origin, how to check it, and the keys that name it."""
        entry, sha256 = self.entry, self.sha256
        about = f": {entry.about}" if entry and entry.about else ""
        yield self.path + (f": a part of {self.folder}" if self.folder else about)
        num = entry.size if entry else None
        size = "unknown" if not num else f"{num / 1e6:,.0f} MB" if num >= 1e6 else f"{num / 1e3:,.0f} kB"
        size += " for the whole folder" if self.folder else ""
        yield f"    size: {size}; licence: {entry.licence if entry and entry.licence else 'not stated, ask its owner'}"
        origin = (entry.url or entry.page) if entry else None
        yield f"    from: {origin or 'not stated, see section inputs'}"
        digest = sha256 and printing.digest(sha256)
        whose = "that of the folder" if self.folder else "its sha256"
        yield f"    check: {f'{whose} is {digest}' if digest else 'no sha256 is known'}"
        more = f" and {len(self.keys) - 1} more keys" if len(self.keys) > 1 else ""
        yield f"    named by: {self.keys[0]}{more}"


def missing_files(configuration: Configuration) -> dict[str, Missing]:
    """All that any experiment needs and that does not exist, by path. No rule can ask for a path with braces."""
    named: dict[tuple[str, str | None], list[tuple[str, str | None]]] = {}  # path, and the folder that lacks it
    for experiment, sections in configuration.experiments.items():
        for key, path, sha256 in named_paths(sections, experiment):
            named.setdefault((path, None), []).append((key, sha256))
        for key, section in nested_sections(sections, experiment):
            for path in lacking(section):
                folder = getattr(section, "folder", None)
                named.setdefault((path, folder), []).append((f"{key}.folder", getattr(section, "sha256", None)))
    entries = {entry.path: entry for entry in configuration.inputs.values()}
    found: dict[str, Missing] = {}
    for (path, folder), keys in named.items():
        if not os.path.lexists(path) and path.isprintable() and not {"{", "}"} & {*path}:
            entry = entries.get(folder or path)
            sha256 = next((each for _, each in keys if each), entry.sha256 if entry and not folder else None)
            found.setdefault(path, Missing(path, tuple(key for key, _ in keys), sha256, entry, folder))
    return found


def listed(found: Iterable[Missing]) -> str:
    """One list of what is missing: first what someone has to put there, then what a run downloads."""
    chosen = sorted(found, key=lambda each: each.path)
    lines: list[str] = []
    for title, group in (
        ("Missing, to be put there before a run", [each for each in chosen if not each.is_downloaded]),
        ("Missing, downloaded by a run", [each for each in chosen if each.is_downloaded]),
    ):
        if group:
            own = [printing.line(line) for each in group for line in each.lines()]
            lines += [f"{title} ({len(group)}):", *(f"  {line}" for line in own)]
    return "\n".join(lines)


def named_paths(section: Section, name: str) -> Iterator[tuple[str, str, str | None]]:
    """Key, path and sha256 of each file or folder that a section and those within it name."""
    for place, inner in nested_sections(section, name):
        if isinstance(inner, IdxDataset):
            yield from ((f"{place}.{key}", path, None) for key, path in inner.files().items())
            continue
        for key in SOURCES:
            if path := getattr(inner, key, None):
                yield f"{place}.{key}", path, getattr(inner, "sha256", None)
        for key in TABLES:
            if str(path := getattr(inner, key, None)).endswith(".csv"):
                yield f"{place}.{key}", str(path), None
