"""Progress on stderr: a bar with an ETA by operations on a terminal, plain lines elsewhere."""

import sys
import time

from loraport.cli import collector, text
from loraport.cli.console import Console, printable, terminal
from loraport.engine import events

_LINE_EVERY = 10.0  # seconds between plain lines
_TOGETHER = 0.1  # seconds


class Bar:
    """One bar on a terminal."""

    def __init__(self) -> None:
        from rich import progress

        self.rich = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("{task.fields[left]}", markup=False),
            console=terminal(stderr=True),
            transient=True,
        )
        self.rich.start()
        self._task = self.rich.add_task("reading headers", total=None, left="")

    def show(self, message: str, done: float, total: float | None, left: str = "") -> None:
        """What is going on, and how far it is."""
        self.rich.update(self._task, description=printable(message), completed=done, total=total, left=left)


class Progress:
    """A listener for the engine's events. Use it as a context manager around the run."""

    def __init__(self, console: Console):
        self._console = console
        self._bar: Bar | None = None
        self._begin()
        self._last_line = self._began
        self._warned: list[str] = []

    @property
    def warned(self) -> tuple[str, ...]:
        """Warnings said already."""
        return tuple(self._warned)

    def __enter__(self) -> "Progress":
        if not self._console.quiet and sys.stderr.isatty():
            self._bar = Bar()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.rich.stop()

    def planned(self, work: str) -> None:
        """Say what the plan is, on a terminal: before it is begun torch is loaded, which takes a second or more."""
        if self._bar is not None:
            self._bar.show(f"{work}; loading PyTorch", 0, None)

    def __call__(self, event: events.Event) -> None:
        """Take one event. With the first the work has begun, and all that it needs is loaded."""
        collector.begin()
        if isinstance(event, events.Warned):
            if event.message not in self._warned:
                self._warned.append(event.message)
                self._say(f"warning: {event.message}", "yellow")
        elif isinstance(event, events.Remarked):
            self._say(event.message)
        elif isinstance(event, events.PlanReady):
            self._begin()
        elif isinstance(event, events.LayerDone):
            left = self._time_left(event, time.monotonic())
            self._advance(f"{event.finished}/{event.layers} layers", event.done, event.total, left)
        elif isinstance(event, events.Written):
            self._advance(event.message, event.done, event.total)
        elif isinstance(event, events.Step):
            if self._bar is not None:
                self._bar.show(event.message, event.done - 1, event.total)
            else:
                self._console.remark(f"[{event.done}/{event.total}] {event.message}")

    def _begin(self) -> None:
        self._began = time.monotonic()
        self._first: float | None = None  # when the first layer was begun that is not from an earlier run
        self._together = 0.0  # until when a layer counts as one of the first
        self._before = 0.0  # operations of layers from an earlier run, until then

    def _say(self, message: str, style: str | None = None) -> None:
        if self._bar is not None:
            self._bar.rich.console.print(printable(message), markup=False, style=style)
        else:
            self._console.remark(message)

    def _advance(self, message: str, done: float, total: float, left: str = "") -> None:
        now = time.monotonic()
        if self._bar is not None:
            self._bar.show(message, done, total, left)
        elif now - self._last_line >= _LINE_EVERY:
            self._last_line = now
            share = f"{100 * done / total if total else 100:.0f} %"
            self._console.remark(", ".join(filter(None, (message, share, left))))

    def _time_left(self, event: events.LayerDone, now: float) -> str:
        """By the mean speed since the first layer was begun that is computed: neither layers from an earlier run, which
        would flatter it, nor the time until workers have started count."""
        if event.layer.cached and self._first is None:
            self._before = event.done
            return ""
        if self._first is None or now < self._together:  # those of a batch come together, each with its own time
            first = now if self._first is None else self._first
            self._first, self._together = max(first - event.layer.seconds, self._began), now + _TOGETHER
        if event.done <= self._before or now <= self._first:
            return ""
        seconds = (now - self._first) * (event.total - event.done) / (event.done - self._before)
        return f"about {text.duration(round(seconds))} left" if seconds >= 1 else ""
