"""Python's garbage collector, which has nothing to find while a program is loaded and files are opened by headers.

Going through all that torch and its like consist of, again and again and once more at the end, takes a quarter of the
time in which they are loaded.
"""

import atexit
import gc


def leave_out() -> None:
    """Collect nothing until `begin`, and nothing at the end of the process. Only for a process that is the program."""
    gc.disable()
    atexit.register(gc.freeze)


def begin() -> None:
    """Collect from here on, where it was left out: what is there by now stays, what work leaves behind does not."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
