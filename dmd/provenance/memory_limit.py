"""Detects whether the process came near its memory limit, where its results may differ in the last bits.

MKL, which multiplies torch's matrices on CPUs, first copies them into buffers. If a buffer is refused, it silently
works without one and rounds in another order, which changes bits of images, scores and eigenvalues.
"""

import contextlib
import re
import resource
from pathlib import Path

MARGIN = 128 << 20  # bytes; the buffer of a product has up to 20 MiB with 16 threads, 65 MiB with 64
_SIZES = re.compile(r"^(VmPeak|VmSize|VmData):\s+(\d+) kB$", re.MULTILINE)


def check() -> None:
    """MemoryError if memory was `tight`; called before results are written or given to other processes."""
    if tight():
        raise MemoryError(
            f"the process came within {MARGIN >> 20} MiB of its limit (ulimit -v or -d), where matrix products may be "
            "rounded differently: nothing was written"
        )


def tight() -> bool:
    """Whether less than `MARGIN` was left at the peak so far."""
    return (left := bytes_left()) is not None and left < MARGIN


def bytes_left() -> int | None:
    """Bytes left below `ulimit -v` and `-d` at the peak so far; None if there are no limits, or no /proc.

    The kernel keeps the peak size of all mappings, but not that of data mappings. So what mappings have shrunk by since
    their peak is taken to have been data.
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
