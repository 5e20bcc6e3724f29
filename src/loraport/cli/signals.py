"""Signals that end the program end it as Ctrl-C does: everything is cleaned up, and the exit code names the signal."""

import contextlib
import signal
import threading
from collections.abc import Iterator

_NAMES = ("SIGTERM", "SIGHUP", "SIGBREAK")


@contextlib.contextmanager
def ended_by_signals() -> Iterator[list[int]]:
    """Within the block SIGTERM and SIGHUP raise KeyboardInterrupt in the main thread, as SIGINT (Ctrl-C) does anyway.

    Yields a list that holds the number of the signal that came, if one did. Further ones are not heard, so that
    cleaning up is not disturbed, but for Ctrl-C, which people press again. A signal that whoever started us ignores or
    handles (nohup) stays as it is.
    """
    received: list[int] = []
    before = {}

    def end(number: int, frame: object) -> None:
        again = bool(received)
        if not again:
            received.append(number)
        if not again or number == signal.SIGINT:
            raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        numbers = [int(getattr(signal, name)) for name in _NAMES if hasattr(signal, name)]
        before = {
            number: signal.signal(number, end) for number in numbers if signal.getsignal(number) == signal.SIG_DFL
        }
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            before[signal.SIGINT] = signal.signal(signal.SIGINT, end)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
