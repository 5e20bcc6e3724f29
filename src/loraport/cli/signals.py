"""Signals that end the program end it as Ctrl-C does: everything is cleaned up, and the exit code names the signal."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

_NAMES = ("SIGTERM", "SIGHUP", "SIGBREAK")
_ECHO = 1.0  # seconds within which the same signal is the same wish: a terminal that is closed says so twice


@contextlib.contextmanager
def ended_by_signals() -> Iterator[list[int]]:
    """Within the block SIGTERM and SIGHUP raise KeyboardInterrupt in the main thread, as SIGINT (Ctrl-C) does anyway.

    Yields a list of the numbers of the signals that came. A further one ends the cleaning up as well. A signal that
    whoever started us ignores or handles (nohup) stays as it is.
    """
    received: list[int] = []
    before = {}
    last = 0.0

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal last
        echo = received[-1:] == [number] and number != signal.SIGINT and time.monotonic() - last < _ECHO
        received.append(number)
        last = time.monotonic()
        if echo:
            return
        comes_again = _raise_again_if_swallowed(frame)
        if not (comes_again and len(received) == 1 and _takes_a_lock(frame)):
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


def _takes_a_lock(frame: FrameType | None) -> bool:
    """Whether Python's own code is about to take or to give back a lock, which an exception would leave taken for ever.

    A worker thread then waits for its future's lock, and the program for the thread. Where that code waits for
    something it does so with its locks in order.
    """
    return (
        frame is not None
        and frame.f_globals.get("__name__") in ("threading", "queue", "concurrent.futures._base")
        and frame.f_code.co_name not in ("wait", "join", "_wait_for_tstate_lock")
    )


def _raise_again_if_swallowed(frame: FrameType | None) -> bool:
    """See to it that KeyboardInterrupt, raised in `frame`, arrives in the code of this package that called it.

    Returns whether it will.

    Libraries swallow it, or make another error of it, most of all while they are imported. Then it is raised once more
    as soon as a line of ours is next.
    """
    while frame is not None and not str(frame.f_globals.get("__name__")).startswith("loraport."):
        frame = frame.f_back
    if frame is None or sys.gettrace() is not None:  # a debugger, which we leave alone
        return False

    def watch(ours: FrameType, event: str, value: Any) -> None:
        if event != "exception" or not issubclass(value[0], KeyboardInterrupt):
            raise KeyboardInterrupt  # which also ends the watch
        sys.settrace(None)
        ours.f_trace = None

    frame.f_trace = watch
    sys.settrace(lambda frame, event, value: None)
    return True
