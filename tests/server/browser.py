"""A headless Chromium, driven over a pipe by its own protocol: opens pages, runs scripts, hears their errors."""

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = "no Chromium on this machine: install the package chromium"


class Navigated(Exception):
    """The page went elsewhere while it was asked."""


class Browser:
    """One tab. ``errors`` collects what a developer would see in red: console errors, exceptions, failed requests."""

    def __init__(self, profile: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        assert CHROMIUM is not None
        here_out, its_in = os.pipe()
        its_out, here_in = os.pipe()
        to_browser, from_browser = os.fdopen(here_in, "wb"), os.fdopen(here_out, "rb")

        def take_pipes() -> None:  # the protocol's numbers are 3 and 4
            read, write = (fcntl.fcntl(pipe, fcntl.F_DUPFD, 10) for pipe in (its_out, its_in))
            os.dup2(read, 3)
            os.dup2(write, 4)

        self._process = subprocess.Popen(
            [
                CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run",
                "--disable-dev-shm-usage", f"--user-data-dir={profile}", "about:blank",
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False,
            preexec_fn=take_pipes,
        )  # fmt: skip
        os.close(its_in)
        os.close(its_out)
        self._to, self._from = to_browser, from_browser
        self._number = 0
        self._session: str | None = None
        self.errors: list[str] = []
        target = next(t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._to.close()
        self._from.close()

    def open(self, address: str) -> None:
        """Goes there; returns before the page's scripts have done anything."""
        self.send("Page.navigate", url=address)

    def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise is awaited."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, script: str, *, seconds: float = 60) -> Any:
        """Waits until an expression is true in the page, and gives its value; what it misses may still be loading."""
        attempt = f"(() => {{ try {{ return {script}; }} catch {{ return false; }} }})()"
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(Navigated):
                if value := self.run(attempt):
                    return value
            assert time.monotonic() < end, f"waited in vain for {script}; errors: {self.errors}"
            time.sleep(0.1)

    def screenshot(self, file: Path) -> None:
        """The whole page, from top to bottom."""
        answer = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(answer["data"]))

    def press(self, key: str) -> None:
        """A key such as Tab or Enter."""
        text = {"Enter": "\r"}.get(key)
        code = {"Tab": 9, "Enter": 13}[key]
        down = {"text": text} if text else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **down)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol, and its result; events that come before it are looked at."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while True:
            answer = json.loads(self._read())
            if answer.get("id") == self._number:
                if "navigated" in answer.get("error", {}).get("message", ""):
                    raise Navigated(method)
                assert "error" not in answer, (method, answer)
                result: dict[str, Any] = answer["result"]
                return result
            self._hear(answer)

    def _read(self) -> bytes:
        message = b""
        while not message.endswith(b"\0"):
            byte = self._from.read(1)
            assert byte, "Chromium has ended"
            message += byte
        return message[:-1]

    def _hear(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(str(params["entry"]))
        elif event.get("method") == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.errors.append(str(params["args"]))
