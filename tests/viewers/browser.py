"""A real browser, driven from a test: Chromium by way of node and playwright-core."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
INSTALL = "'make e2e' installs it where it may"


def chromium() -> str:
    """Path of Chromium; skips the test, with a reason, where it or what drives it is missing."""
    for program in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(program):
            break
    else:
        pytest.skip(f"Chromium is not installed; {INSTALL} (Debian: chromium)")
    if shutil.which("node") is None:
        pytest.skip(f"node is not installed; {INSTALL} (Debian: nodejs)")
    if not (HERE / "node_modules" / "playwright-core").is_dir():
        pytest.skip(f"playwright-core is not installed in {HERE}; {INSTALL} ('npm ci' in that folder)")
    return found


class Browser:
    """One page. ``pictures`` is the folder of its screenshots."""

    def __init__(self, pictures: Path) -> None:
        pictures.mkdir(parents=True, exist_ok=True)
        self.pictures = pictures
        self._process = subprocess.Popen(
            ["node", str(HERE / "browser.mjs"), chromium()],
            cwd=HERE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def run(self, code: str, argument: Any = None) -> Any:
        """Runs JavaScript beside the page, with ``page`` of playwright-core and ``argument``; what it returns."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"code": code, "argument": argument}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the browser has ended"
        answer = json.loads(line)
        assert "error" not in answer, f"{answer['error']}\nin: {code}"
        return answer.get("value")

    def inside(self, function: str, argument: Any = None) -> Any:
        """Runs a JavaScript function inside the page; what it returns."""
        return self.run(f"return page.evaluate({function}, argument)", argument)

    def open(self, address: str) -> None:
        """Goes to an address."""
        self.run("await page.goto(argument)", address)

    def click(self, selector: str) -> None:
        """A click with the mouse, once the element is there and can be clicked."""
        self.run("await page.click(argument)", selector)

    def text(self, selector: str) -> str:
        """What an element says."""
        return str(self.run("return (await page.textContent(argument)).trim()", selector))

    def wait(self, function: str, argument: Any = None) -> None:
        """Until a JavaScript function inside the page gives something true."""
        self.run(f"await page.waitForFunction({function}, argument)", argument)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drags the left button from one point of the page to another."""
        self.run(
            "await page.mouse.move(...argument[0]); await page.mouse.down();"
            "await page.mouse.move(...argument[1], { steps: 6 }); await page.mouse.up();",
            [start, end],
        )

    def press(self, key: str) -> None:
        """One key."""
        self.run("await page.keyboard.press(argument)", key)

    def picture(self, name: str) -> None:
        """A screenshot."""
        self.run("await page.screenshot({ path: argument })", str(self.pictures / f"{name}.png"))

    def disagree(self, question: str, code: str) -> None:
        """Runs JavaScript beside the page upon which that asks something, and says no to it."""
        self.run(f"asked.length = 0; globalThis.agreeing = false; {code}")
        found = self.run(
            "for (let i = 0; i < 600 && !asked.length; i++) await page.waitForTimeout(50);"
            "globalThis.agreeing = true; return asked"
        )
        assert [question in asked for asked in found] == [True]

    def errors(self) -> list[str]:
        """Exceptions that nobody in the page has caught."""
        return list(self.run("return errors"))
