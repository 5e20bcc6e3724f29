"""How the program begins: except for the time of a command (`signals.py`) Ctrl-C ends it without a word.

Before, nothing has been done yet; afterwards everything has been.
"""

import os
import signal


def run() -> None:
    """Entry point of the console script and of `python -m loraport`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else whoever started us ignores it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if "_LORAPORT_COMPLETE" in os.environ:
        os.environ["TERMINAL_WIDTH"] = "10000"  # typer breaks what it says of a name, and each line would be a name
    # torch then asks Linux for pages of 2 MB: weights of 14B take a third less time, with the same bytes.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from loraport.machine import cores, cores_in_sight

    if cores() < cores_in_sight():  # of a container: threads without a core of their own wait for each other
        os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
    from loraport.cli import main

    main.run()
