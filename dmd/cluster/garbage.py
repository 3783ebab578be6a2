"""A process that runs a stage does not search for garbage while it imports: it would take .6 s of 2, and find none."""

import gc


def wait_for_imports() -> None:
    """Switches the search off until `imports_are_done`."""
    gc.disable()


def imports_are_done() -> None:
    """Switches the search for garbage on, for objects made from now on; does nothing where it was on."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
