"""One module per pipeline step, with a function `run`; `python -m dmd.stages.NAME` calls it."""

import sys

from dmd.jobs import garbage_collection

if sys.argv[0] == "-m":
    garbage_collection.switch_off()
