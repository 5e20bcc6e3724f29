"""How the program begins: until its parts are loaded, Ctrl-C ends it without a word, as nothing has been done yet."""

import os
import signal


def run() -> None:
    """Entry point of the console script and of `python -m loraport`."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else whoever started us ignores it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if "_LORAPORT_COMPLETE" in os.environ:
        os.environ["TERMINAL_WIDTH"] = "10000"  # typer breaks what it says of a name, and each line would be a name
    from loraport.cli import main

    signal.signal(signal.SIGINT, before)
    main.run()
