"""What a description of a network may ask for. The bounds hold wherever one is built, from whatever file it comes."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from dmd.provenance import outside_files

MOST = 1 << 20  # of any integer: channels, classes, pixels along a side
MOST_BLOCKS = 1024  # of all levels together; released networks have up to 72
MOST_ITEMS, MOST_CHARACTERS, MOST_DEPTH = 128, 1000, 4  # of a list or section, of a text, of sections within sections
MOST_LEVELS = 10_000  # of noise; released networks have 1000
NOISE = ("trained_betas", "alphas_cumprod", "num_train_timesteps", "num_levels")
SCALES = ("multipliers", "block_out_channels", "encoder_block_out_channels", "decoder_block_out_channels")
COUNTS = (
    *("blocks", "layers", "layers_per_block", "num_layers", "num_hidden_layers"),
    *(
        "num_encoder_blocks",
        "num_decoder_blocks",
        "transformer_layers_per_block",
        "reverse_transformer_layers_per_block",
    ),
)


@contextlib.contextmanager
def making(what: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Checks the arguments, and turns whatever the block raises while it builds something of them into a ValueError.

    Args:
        what: what is built, for messages.

    Raises:
        ValueError: `check` refuses the arguments, or the block raised an exception; the message is one line.
    """
    check(what, arguments)
    try:
        yield
    except Exception as error:
        reason = outside_files.reason(error)
        raise ValueError(reason if reason.startswith(what) else f"{what}: {reason}") from error


def check(what: str, arguments: Mapping[str, Any]) -> None:
    """ValueError, which names `what` and the key, for values beyond the bounds of this module."""
    for key, value in arguments.items():
        _check(f"{what}: {str(key)[:100]}", value, MOST_LEVELS if key in NOISE else MOST, 0)
    levels = max((len(arguments[key]) for key in SCALES if isinstance(arguments.get(key), list | tuple)), default=1)
    blocks = levels * math.prod(_count(arguments.get(key)) for key in COUNTS)
    if blocks > MOST_BLOCKS:
        given = ", ".join(key for key in COUNTS if arguments.get(key) is not None)
        raise ValueError(f"{what}: {given} ask for {blocks} blocks, more than {MOST_BLOCKS}")


def _count(value: Any) -> int:
    """The largest integer of a value that is one, or a list of them, perhaps nested; 1 for anything else."""
    if isinstance(value, list | tuple):
        return max((_count(each) for each in value), default=1)
    return max(value, 1) if isinstance(value, int) else 1


def _check(place: str, value: Any, most: int, depth: int) -> None:
    if isinstance(value, Mapping | list | tuple):
        limit = most if most < MOST else MOST_ITEMS
        if len(value) > limit or depth > MOST_DEPTH:
            raise ValueError(f"{place}: {len(value)} items, more than {limit}, or nested too deeply")
        for each in value.values() if isinstance(value, Mapping) else value:
            _check(place, each, most, depth + 1)
    elif isinstance(value, int) and abs(value) > most:
        raise ValueError(f"{place}: the number is beyond {most}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place}: {value} is no finite number")
    elif isinstance(value, str) and len(value) > MOST_CHARACTERS:
        raise ValueError(f"{place}: a text of {len(value)} characters, more than {MOST_CHARACTERS}")
