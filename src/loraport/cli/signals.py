"""Signals that end the program end it as Ctrl-C does: everything is cleaned up, and the exit code names the signal."""

import contextlib
import signal
import threading
from collections.abc import Iterator

_NAMES = ("SIGTERM", "SIGHUP", "SIGBREAK")


@contextlib.contextmanager
def ended_by_signals() -> Iterator[list[int]]:
    """Within the block SIGTERM and SIGHUP raise KeyboardInterrupt in the main thread.

    Yields a list that holds the number of the signal that came, if one did. Further ones are not heard, so that
    cleaning up is not disturbed. A signal that whoever started us ignores or handles (nohup) stays as it is.
    """
    received: list[int] = []
    before = {}

    def end(number: int, frame: object) -> None:
        if not received:
            received.append(number)
            raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        numbers = [int(getattr(signal, name)) for name in _NAMES if hasattr(signal, name)]
        before = {
            number: signal.signal(number, end) for number in numbers if signal.getsignal(number) == signal.SIG_DFL
        }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
