"""A page in a real headless Chromium, driven over its DevTools protocol: what it shows, what it says, and what a click does."""

from __future__ import annotations

import base64
import fcntl
import functools
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.debian import install
from tests.patience import patience

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class Page:
    """An open page. `messages` are errors, warnings and console lines; `requests` every address that was asked for."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._rest = b""
        self._number = 0
        self._session: str | None = None
        self.messages: list[str] = []
        self.requests: list[str] = []

    def open(self, path: Path, *, width: int = 1280, dark: bool = False) -> None:
        """Load a file and wait for its scripts."""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._ask("Emulation.setEmulatedMedia", features=scheme)
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self._ask("Page.navigate", url=path.as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        done = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def click(self, selector: str, place: int = 0) -> None:
        """Click in the middle of an element, as a mouse does."""
        x, y = self.run(
            f"(() => {{ const e = document.querySelectorAll({selector!r})[{place}]; e.scrollIntoView({{block: 'center'}});"
            "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, path: Path) -> Path:
        """The whole page as PNG."""
        shot = self._ask("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps({"id": self._number, "method": method, "params": parameters, **session}).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            block = os.read(self._from, 1 << 16)
            assert block, "Chromium has gone"
            self._rest += block
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, parameters: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.messages.append(json.dumps(parameters))


def _raise(descriptor: int) -> int:
    """The same, by a number that leaves 3 and 4 free."""
    high = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return high


@functools.cache
def _provide_chromium() -> tuple[str | None, str]:
    """The browser's program, installed if that can be done, or why there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is not None:
        return found, ""
    why = install(["chromium"])
    return shutil.which("chromium"), why or "Debian's chromium is installed, and isn't on PATH"


def find_chromium() -> str:
    """The browser's program; without one the test is skipped."""
    found, why = _provide_chromium()
    if found is None:
        pytest.skip(why)
    return found


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """A browser with one page; the test is skipped if there is none."""
    program = find_chromium()
    # Chromium reads commands from descriptor 3 and answers on 4
    command_in, command_out, answer_in, answer_out = (
        _raise(descriptor) for pipe in (os.pipe(), os.pipe()) for descriptor in pipe
    )
    words = [program, *_FLAGS, f"--user-data-dir={profile}"]
    shell = f'exec 3<&{command_in} 4>&{answer_out} {command_in}<&- {answer_out}>&-; exec "$@"'
    browser = subprocess.Popen(
        ["bash", "-c", shell, "bash", *words],
        pass_fds=(command_in, answer_out),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(command_in)
    os.close(answer_out)
    try:
        yield Page(command_out, answer_in)
    finally:
        os.killpg(browser.pid, signal.SIGKILL)
        browser.wait(timeout=patience(30))
        os.close(command_out)
        os.close(answer_in)
