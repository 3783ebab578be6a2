"""One module per pipeline step, with a function `run`; `python -m dmd.stages.NAME` calls it."""

import sys

from dmd.cluster import garbage

if sys.argv[0] == "-m":
    garbage.switch_off()
