"""A real browser for tests and for the pictures in docs/: Chromium without a window, told what to do through two pipes.

The pipes speak the browser's own protocol (https://chromedevtools.github.io/devtools-protocol/), a message of JSON and
a zero byte each, so nothing has to be installed beside the browser.
"""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--force-color-profile=srgb",
    "--remote-debugging-pipe",
)  # fmt: skip
# The browser reads its orders from file 3 and writes its answers to file 4.
LAUNCH = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(pipe), fcntl.F_DUPFD, 10) for pipe in sys.argv[1:3]]
for file, pipe in zip((3, 4), pipes):
    os.dup2(pipe, file)
os.execv(sys.argv[3], sys.argv[3:])
"""
PATIENCE = 120.0  # seconds; a machine may be busy


def find_browser() -> str | None:
    """The browser of this machine, None if it has none that can be driven."""
    if sys.platform == "win32":  # pipes are handed over otherwise there
        return None
    return os.environ.get("LORAPORT_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page in a browser.

    Args:
        program: of the browser.
        profile: an empty folder for its settings.
    """

    def __init__(self, program: str, profile: Path):
        orders, self._out = os.pipe()
        self._in, answers = os.pipe()
        start = [sys.executable, "-c", LAUNCH, str(orders), str(answers)]
        self._process = subprocess.Popen(
            [*start, program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(orders, answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(orders)
        os.close(answers)
        self._numbers, self._rest, self.events = itertools.count(1), b"", []
        try:
            target = self._ask("Target.createTarget", {"url": "about:blank"})["targetId"]
            self._session = self._ask("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
            for room in ("Page", "Runtime", "Log", "Network"):
                self.ask(f"{room}.enable")
        except BaseException:
            self._end()
            raise

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send the page an order and wait for its answer."""
        return self._ask(method, parameters, sessionId=self._session)

    def open(self, file: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Show a file, in a window of that size."""
        self.events.clear()
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 700
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=scheme)
        self.ask("Page.navigate", url=Path(file).resolve().as_uri())
        self._until(lambda event: event.get("method") == "Page.loadEventFired")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page; a promise is waited for."""
        found = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def picture(self, *, whole: bool = True) -> bytes:
        """What is seen, as a PNG; the whole page, not only the window."""
        found = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **self._clip(whole))
        return base64.b64decode(found["data"])

    def complaints(self) -> list[str]:
        """Everything that the console was told since the page was opened, errors and refusals first of all."""
        found = []
        for event in self.events:
            told = event.get("params", {})
            if event.get("method") == "Log.entryAdded":
                found.append(told["entry"]["text"])
            elif event.get("method") == "Runtime.exceptionThrown":
                found.append(json.dumps(told["exceptionDetails"]))
            elif event.get("method") == "Runtime.consoleAPICalled":
                found.append(json.dumps(told["args"]))
        return found

    def fetched(self) -> list[str]:
        """Addresses that the page has asked for since it was opened, itself aside."""
        asked = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]

    def close(self) -> None:
        """End the browser."""
        try:
            self._ask("Browser.close", {})
            self._process.wait(timeout=PATIENCE)
        finally:
            self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}

    def _ask(self, method: str, parameters: dict[str, Any], **more: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = json.dumps({"id": number, "method": method, "params": parameters} | more).encode() + b"\0"
        os.write(self._out, message)
        answer = self._until(lambda event: event.get("id") == number)
        assert "error" not in answer, answer
        return answer["result"]

    def _until(self, wanted: Any) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while True:
            while b"\0" in self._rest:
                one, self._rest = self._rest.split(b"\0", 1)
                event = json.loads(one)
                self.events.append(event)
                if wanted(event):
                    return event
            ready, _, _ = select.select([self._in], [], [], max(end - time.monotonic(), 0))
            piece = os.read(self._in, 1 << 16) if ready else b""
            if not piece:
                raise RuntimeError("the browser did not answer")
            self._rest += piece


@contextmanager
def browsing(profile: Path) -> Iterator[Browser]:
    """A browser for the block; the test is skipped where there is none."""
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium or Chrome that can be driven; LORAPORT_BROWSER names one")
    browser = Browser(program, profile)
    try:
        yield browser
    finally:
        browser.close()
