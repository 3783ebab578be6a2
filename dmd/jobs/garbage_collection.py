"""No garbage collection while a stage imports its modules: it would take .6 s of 2 and free nothing."""

import gc


def switch_off() -> None:
    """Before the imports."""
    gc.disable()


def switch_on() -> None:
    """After the imports: collects objects made from now on. Does nothing where collection was on."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
