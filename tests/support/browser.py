"""Chromium without a window, driven over its DevTools protocol: keys, screens, and what a page's script would see."""

from __future__ import annotations

import base64
import itertools
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import websocket

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
_SECONDS = 60
_KEYS = {"Tab": 9, "Enter": 13, "Space": 32, "ArrowRight": 39, "End": 35}
_SHIFT = 8
_LISTENING = re.compile(r"^DevTools listening on (ws://\S+)\n", re.MULTILINE)


class Tab:
    """One page of the browser."""

    def __init__(self, address: str) -> None:
        self._socket = websocket.create_connection(address, timeout=_SECONDS, suppress_origin=True)
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self._loaded = False
        self.problems: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def call(self, method: str, **parameters: Any) -> Any:
        """Return the result of a command; earlier events are recorded."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        self._socket.send(json.dumps(message | ({"sessionId": self._session} if self._session else {})))
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def open(self, url: str, *, width: int = 1000, height: int = 900, dark: bool = False) -> None:
        """Load a page on a screen of that size, and wait until it is complete."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        with self.loading():
            self.call("Page.navigate", url=url)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Wait until the page that the block opens is complete."""
        self._loaded = False
        yield
        while not self._loaded:
            self._next()

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press and release a key."""
        parameters: dict[str, Any] = {
            "key": " " if key == "Space" else key,
            "code": key,
            "windowsVirtualKeyCode": _KEYS[key],
            "modifiers": _SHIFT if shift else 0,
        }
        text = {"Enter": {"text": "\r"}, "Space": {"text": " "}}.get(key, {})
        self.call("Input.dispatchKeyEvent", type="keyDown", **parameters, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **parameters)

    def ask(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript; promises are awaited."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + _SECONDS
        while not self.ask(expression):
            assert time.monotonic() < deadline, f"never true: {expression}"
            time.sleep(0.05)

    def photograph(self, path: Path) -> None:
        """Write a picture of the whole page."""
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))

    def _next(self) -> Any:
        answer = json.loads(self._socket.recv())
        if answer.get("method") == "Log.entryAdded":
            self.problems.append(answer["params"]["entry"]["text"])
        self._loaded |= answer.get("method") == "Page.loadEventFired"
        return answer


@contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """Start a browser with an empty profile, and end it."""
    written = profile / "written"
    with written.open("wb") as output:
        process = subprocess.Popen(
            [
                str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank",
            ],
            stdout=output,
            stderr=output,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + _SECONDS
        while not (found := _LISTENING.search(written.read_text("utf-8"))):
            starting = process.poll() is None and time.monotonic() < deadline
            assert starting, written.read_text("utf-8")
            time.sleep(0.05)
        tab = Tab(found[1])
        try:
            yield tab
        finally:
            tab.close()
    finally:
        process.terminate()
        process.wait()
