"""What happens to files: bytes that flip, vanish, repeat or claim other sizes, and text that names something else."""

import random
import re
import struct
from collections.abc import Sequence

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 1 << 20, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
JSON = tuple(
    text.encode()
    for text in 'null true [] {} -1 0 1.5 1e999 99999999999999999999 NaN "" ".." [null] [[[[ {"a": 1}'.split(" ")
)


def mutated(content: bytes, chosen: random.Random, tokens: Sequence[bytes] = ()) -> bytes:
    """Another content, after one to four mutations; often near the ends of a file, where formats keep what they say.

    Args:
        tokens: what may take the place of bytes, besides random ones: words of the format, claims, hostile text.
    """
    for _ in range(chosen.choice((1, 1, 1, 2, 4))):
        content = _once(content, chosen, tokens)
    return content


def _once(content: bytes, chosen: random.Random, tokens: Sequence[bytes]) -> bytes:
    if not content:
        return chosen.randbytes(chosen.randrange(64))
    place = _place(len(content), chosen)
    length = min(chosen.choice((1, 2, 4, 8, 16, 100, 512)), len(content) - place)
    kind = chosen.randrange(9 if tokens else 7)
    if kind == 0:
        return content[:place] + bytes([content[place] ^ (1 << chosen.randrange(8))]) + content[place + 1 :]
    if kind == 1:
        return content[:place]
    if kind == 2:
        return content[:place] + content[place + length :]
    if kind == 3:
        return content[:place] + chosen.randbytes(length) + content[place + length :]
    if kind == 4:
        return content[:place] + content[place : place + length] * chosen.choice((2, 3, 50)) + content[place + length :]
    if kind == 5:
        other = _place(len(content), chosen)
        return content[:place] + content[other : other + length] + content[place + length :]
    if kind == 6:
        form = chosen.choice(("<B", "<H", "<I", "<Q", ">I", ">Q"))
        claim = struct.pack(form, chosen.choice(EXTREMES) & ((1 << 8 * struct.calcsize(form)) - 1))
        return content[:place] + claim + content[place + len(claim) :]
    token = chosen.choice(tokens)
    if kind == 7:  # beside a word of the same format
        found = [at for word in tokens if (at := content.find(word)) >= 0]
        place = chosen.choice(found) if found else place
    return content[:place] + token + content[place + chosen.choice((0, len(token))) :]


def _place(size: int, chosen: random.Random) -> int:
    """A place in a file: its first or last 2 KiB in most cases."""
    near = min(size, 2048)
    return chosen.choice((chosen.randrange(near), size - 1 - chosen.randrange(near), chosen.randrange(size)))


def mutated_json(text: bytes, chosen: random.Random) -> bytes:
    """JSON in which a value became another, or a string, a name perhaps, another of its strings."""
    strings = list(re.finditer(rb'"[^"]*"', text))
    if strings and chosen.random() < 0.3:
        one, other = chosen.choice(strings), chosen.choice(strings)
        return text[: one.start()] + other[0] + text[one.end() :]
    places = [at for at, byte in enumerate(text) if byte in b":[,"]
    at = chosen.choice(places) + 1
    end = min((found for mark in b",]}" if (found := text.find(bytes([mark]), at)) >= 0), default=len(text))
    return text[:at] + chosen.choice(JSON) + text[end:]
