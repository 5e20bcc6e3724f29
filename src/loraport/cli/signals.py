"""Signals that end the program end it as Ctrl-C does: everything is cleaned up, and the exit code names the signal."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
_USUAL = (signal.SIG_DFL, signal.default_int_handler)
_ECHO = 1.0  # seconds within which the same signal is the same wish: a terminal that is closed says so twice


@contextlib.contextmanager
def ended_by_signals() -> Iterator[list[int]]:
    """Within the block SIGTERM, SIGHUP and SIGINT (Ctrl-C) raise KeyboardInterrupt in the main thread.

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
        if not (_raise_again_if_swallowed(frame) and _changes_threads(frame)):
            raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        numbers = [int(getattr(signal, name)) for name in _NAMES if hasattr(signal, name)]
        before = {number: signal.signal(number, end) for number in numbers if signal.getsignal(number) in _USUAL}
    hook = sys.unraisablehook
    if before:
        sys.unraisablehook = partial(_tell, hook)
    try:
        yield received
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(hook: Callable[[Any], Any], swallowed: Any) -> None:
    """Print what Python swallows, as where an object goes; but of an interrupt, which is raised again."""
    if not issubclass(swallowed.exc_type, KeyboardInterrupt):
        hook(swallowed)


def _changes_threads(frame: FrameType | None) -> bool:
    """Whether Python's own code is amid locks, threads or processes, which an exception would leave in disorder.

    A lock may stay taken for ever: a worker thread waits for its future's, and the program for the thread. A process
    that was just begun may be known to nobody. Where that code waits for something, all is in order.
    """
    name = "" if frame is None else str(frame.f_globals.get("__name__"))
    return (
        frame is not None
        and name.startswith(("threading", "queue", "concurrent.futures.", "multiprocessing."))
        and frame.f_code.co_name not in ("wait", "join", "_wait_for_tstate_lock")
    )


def _raise_again_if_swallowed(frame: FrameType | None) -> bool:
    """See to it that KeyboardInterrupt, raised in `frame`, arrives in the code of this package that called it.

    Returns whether it will.

    Libraries swallow it, or make another error of it, most of all while they are imported. Then it is raised once more
    as soon as a line of ours is next.
    """
    if sys.gettrace() is _nothing:  # one is on its way there
        return True
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
    sys.settrace(_nothing)
    return True


def _nothing(frame: FrameType, event: str, value: Any) -> None:
    """Trace no further frame."""
