"""One module per pipeline step. Each has `run(*, paths, numbers)` and can be called as `python -m dmd.stages.NAME`.

Imports of such a process leave no garbage, and the search for it would take .6 s of its 2: it begins in `main`.
"""

import gc
import sys

if sys.argv[0] == "-m":
    gc.disable()


def imports_are_done() -> None:
    """Garbage is looked for from now on, among what is made from now on. Nothing where it was looked for before."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
