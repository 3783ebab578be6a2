"""One module per pipeline step. Each has `run(*, paths, numbers)` and can be called as `python -m dmd.stages.NAME`."""

import sys

from dmd.cluster import garbage

if sys.argv[0] == "-m":
    garbage.switch_off()
