"""Whether the process ever came near its memory limit: its results may then have other bits.

MKL, which multiplies torch's matrices on CPUs, copies them into buffers first. Where a buffer is refused it works
without one and says nothing, but it rounds in another order: images, scores and eigenvalues get other bits.
"""

import contextlib
import re
import resource
from pathlib import Path

MARGIN = 128 << 20  # bytes; a buffer of a product has up to 20 MiB where 16 threads share it, 65 MiB of 64 threads
_SIZES = re.compile(r"^(VmPeak|VmSize|VmData):\s+(\d+) kB$", re.MULTILINE)


def check() -> None:
    """MemoryError if memory was `tight`; called before results are written or given to other processes."""
    if tight():
        raise MemoryError(
            f"the process came within {MARGIN >> 20} MiB of its limit (ulimit -v or -d), where matrix products may be "
            "rounded differently: nothing was written"
        )


def tight() -> bool:
    """Whether less than `MARGIN` was left at the fullest moment up to now."""
    return (left := bytes_left()) is not None and left < MARGIN


def bytes_left() -> int | None:
    """Bytes below `ulimit -v` and `-d` at the fullest moment up to now; None without limits, or where no /proc tells.

    The kernel keeps the peak of all mappings, but not that of the data among them: whatever the mappings have shrunk by
    since their peak counts as data.
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
        shrunk = sizes["VmPeak"] - sizes["VmSize"]
        return min(limit - sizes[name] - shrunk for name, limit in limits.items())
    return None
