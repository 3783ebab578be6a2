"""One module per pipeline step. Each has `run(*, paths, numbers)` and can be called as `python -m dmd.stages.NAME`.

Such a process does not search for garbage while it imports: that would take .6 s of 2, and find none. `main` switches
the search on.
"""

import gc
import sys

if sys.argv[0] == "-m":
    gc.disable()


def imports_are_done() -> None:
    """Switches the search for garbage on, for objects made from now on; does nothing where it was on."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
