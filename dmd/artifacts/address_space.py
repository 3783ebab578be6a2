"""Whether memory was refused, or nearly so, at any time: what a process has computed is then not to be trusted.

The matrix products of MKL, which torch uses on CPUs, pack their factors into buffers. Where such a buffer is refused
they go on without one and say nothing, but round in another order: images, scores and eigenvalues get other bits.
"""

import contextlib
import re
import resource
from pathlib import Path

MARGIN = 128 << 20  # bytes; a buffer of a product has up to 20 MiB where 16 threads share it, 65 MiB of 64 threads
_SIZES = re.compile(r"^(VmPeak|VmSize|VmData):\s+(\d+) kB$", re.MULTILINE)


def check() -> None:
    """MemoryError if it is `tight`: before what was computed is written, or given to other processes."""
    if tight():
        raise MemoryError(
            f"the process came within {MARGIN >> 20} MiB of its limit (ulimit -v or -d), where numbers may come out "
            "otherwise: they were not written"
        )


def tight() -> bool:
    """Whether less than `MARGIN` was left at the fullest moment up to now."""
    return (bytes_left := left()) is not None and bytes_left < MARGIN


def left() -> int | None:
    """Bytes below `ulimit -v` and `-d` at the fullest moment up to now; None without limits, or where no /proc tells.

    The kernel keeps the peak of all mappings alone, not that of the data among them: what all had more then than now
    counts as data.
    """
    limits = {
        "VmSize": resource.getrlimit(resource.RLIMIT_AS)[0],
        "VmData": resource.getrlimit(resource.RLIMIT_DATA)[0],
    }
    limits = {name: limit for name, limit in limits.items() if limit != resource.RLIM_INFINITY}
    if not limits:
        return None
    with contextlib.suppress(OSError, KeyError):
        sizes = {name: int(size) << 10 for name, size in _SIZES.findall(Path("/proc/self/status").read_text())}
        more = sizes["VmPeak"] - sizes["VmSize"]
        return min(limit - sizes[name] - more for name, limit in limits.items())
    return None
