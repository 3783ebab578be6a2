"""Text from outside as it is printed: without control characters and secrets, and of bounded length."""

from __future__ import annotations

import re

from dmd.config.section_base import FULL_LENGTH

PIECE = 200  # characters of a name, prompt or field from outside
LINE = 2000  # characters of a line of a log or of the screen
LINES = 400  # lines of a traceback
_USER = re.compile(r"://[^\s/?#'\"]*@")
_QUERY = re.compile(r"\?[^\s'\"]+")
_MARKUP = re.compile(r"[\\`*|$]|\](?=[(\[:])|~(?=~)|(?<!\w)_|_(?!\w)")
_WORD = re.compile(r"[^\s'\"]+")


def piece(text: object) -> str:
    """A name, prompt or field from outside: `line` of `PIECE` characters."""
    return line(text, limit=PIECE)


def line(text: object, *, limit: int = LINE) -> str:
    """`text` on one line of at most `limit` characters, of which the middle is left out where there are more.

    Characters that move the cursor, end a line, change the direction of writing or are no Unicode are escaped, as in
    `\\x1b`. User names, passwords and queries of URLs are `***`.
    """
    whole = _shortened(str(text), 10 * limit)
    shown = without_secrets(whole)
    return _shortened("".join(each if each.isprintable() else _escaped(each) for each in shown), limit)


def lines(text: object) -> str:
    """Several lines, each as `line` gives it; the first of more than `LINES` are left out."""
    return "\n".join(line(each) for each in str(text).split("\n")[-LINES:])


def digest(sha256: str) -> str:
    """A digest for messages; dots stand for unknown digits."""
    return sha256 if len(sha256) == FULL_LENGTH else f"{sha256}..."


def without_secrets(text: str) -> str:
    """`text` with `***` for user name and password of each URL in it, and for the query of each URL or path."""
    return _WORD.sub(lambda word: _QUERY.sub("?***", word[0], count=1) if "/" in word[0] else word[0],
                     _USER.sub("://***@", text))  # fmt: skip


def markdown(text: object, *, limit: int = PIECE) -> str:
    """`line` for the inside of a line of markdown, in which it is neither markup nor HTML nor the end of a cell."""
    escaped = _MARKUP.sub(r"\\\g<0>", line(text, limit=limit))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    mark = f" ... {len(text)} characters ... "
    tail = (limit - len(mark)) // 3
    return text[: limit - len(mark) - tail] + mark + text[len(text) - tail :]
