"""Tables whose first line names the columns, as spreadsheets write them: UTF-8, UTF-16 or Latin-1."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from dmd.provenance import outside_files

MOST_HEADER = 10_000  # characters of the first line
MOST_LINE = 1_000_000  # of any line


def rows(path: Path, columns: Sequence[str], what: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Number of the last line, and the cells by column without blanks around them, of each row.

    Rows of blank cells are passed over. A table that is neither UTF-8 nor UTF-16 is read as Latin-1: a wrong letter in
    a name would match no image.

    Args:
        columns: that the table must have once each; it may have others.
        what: the table, for messages, such as "a table of labels".

    Raises:
        ValueError: the file cannot be read, lacks a column or has it twice, or a line is damaged.
    """
    text = outside_files.read_text(path, what, otherwise="latin-1")
    header_line, line = text[:MOST_HEADER].partition("\n")[0].strip(), 1
    marks = (mark for mark in ",;\t" if set(columns) <= {cell.strip('" ') for cell in header_line.split(mark)})
    cells = csv.reader(_lines(text), delimiter=next(marks, ","), strict=True)
    try:
        header = [cell.strip() for cell in next(cells, [])]
        if any(header.count(name) != 1 for name in columns):
            needed = " and ".join(f"one {name}" for name in columns)
            raise ValueError(f"{path} has the columns {', '.join(header)[:200]!r}, not {needed}")
        line = cells.line_num + 1
        for row in cells:
            pairs = itertools.zip_longest(header, row[: len(header)], fillvalue="")
            if any((found := {name: cell.strip() for name, cell in pairs}).values()):
                yield cells.line_num, found
            line = cells.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {line}: {error}: is there a stray quote?") from error


def _lines(text: str) -> Iterator[str]:
    """The lines of a text; a signal can stop the stage between two of them."""
    for line in io.StringIO(text, newline=""):
        if len(line) > MOST_LINE:
            raise csv.Error(f"it has {len(line)} characters, more than {MOST_LINE}")
        yield line
