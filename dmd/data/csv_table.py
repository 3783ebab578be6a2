"""Tables whose first line names the columns, as spreadsheets write them: UTF-8, UTF-16 or UTF-32."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from dmd.provenance import outside_files

MOST_HEADER = 10_000  # characters of the first line
MOST_LINE = 1_000_000  # of any line


def rows(
    path: Path,
    columns: Sequence[str],
    what: str,
    *,
    optional: Sequence[str] | None = None,
    otherwise: str | None = None,
) -> Iterator[tuple[int, dict[str, str]]]:
    """Number of the last line, and the cells by column without blanks around them, of each row.

    Rows of blank cells are passed over. Capital letters in a column's name do not matter.

    Args:
        columns: that the table must have once each.
        what: the table, for messages, such as "a table of labels".
        optional: all other columns that it may have; None allows any.
        otherwise: the encoding of a table in no form of Unicode; None refuses it.

    Raises:
        ValueError: the file cannot be read; it lacks a column, has one twice, or has one that it may not have; a line
            is damaged or has more cells than the header.
    """
    text = outside_files.read_text(path, what, otherwise=otherwise)
    header_line, line = text[:MOST_HEADER].partition("\n")[0].strip(), 1
    marks = (mark for mark in ",;\t" if set(columns) <= {cell.strip('" ') for cell in header_line.lower().split(mark)})
    cells = csv.reader(_lines(text), delimiter=next(marks, ","), strict=True)
    try:
        header = [cell.strip().lower() for cell in next(cells, [])]
        if any(header.count(name) != 1 for name in columns):
            needed = " and ".join(f"one {name}" for name in columns)
            raise ValueError(f"{path} has the columns {', '.join(header)[:200]!r}, not {needed}")
        if optional is not None:
            _check_others(header, [*columns, *optional], path, what)
        line = cells.line_num + 1
        for row in cells:
            if any(cell.strip() for cell in row[len(header) :]):
                raise ValueError(
                    f"{path}, line {line}: it has {len(row)} cells, but the first line has {len(header)}: "
                    "is a text with the mark that parts cells not in quotes?"
                )
            pairs = itertools.zip_longest(header, row[: len(header)], fillvalue="")
            if any((found := {name: cell.strip() for name, cell in pairs}).values()):
                yield cells.line_num, found
            line = cells.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {line}: {error}: is there a stray quote?") from error


def _check_others(header: Sequence[str], allowed: Sequence[str], path: Path, what: str) -> None:
    """ValueError for a named column that is not allowed or is there twice."""
    for name in header:
        if name and (name not in allowed or header.count(name) > 1):
            raise ValueError(
                f"{path}: {what} may have the columns {', '.join(allowed)}, once each: remove {name[:200]!r}"
            )


def _lines(text: str) -> Iterator[str]:
    """The lines of a text; a signal can stop the stage between two of them."""
    for line in io.StringIO(text, newline=""):
        if len(line) > MOST_LINE:
            raise csv.Error(f"it has {len(line)} characters, more than {MOST_LINE}")
        yield line
