"""A small experiment on the sample study, killed and started again; its report opens in a browser."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conftest import ROOT
from tests.experiments.conftest import command, steps, wait_for

pytestmark = pytest.mark.slow

TASK = {
    "name": "phantoms",
    "labels": ["anterior", "posterior"],
    "spacing": [1, 1, 1],
    "window": [48, 64, 48],
    "network": {"name": "UNet", "arguments": {"channels": [4, 8], "strides": [2]}},
    "particles": 2,
    "steps": 3,
    "batch": 1,
    "queries": 2,
}
ARMS = ("entropy_mi_delete", "random")
FRAMES = """<!DOCTYPE html><title>frames</title><body>
<iframe src="{page}" style="width:390px;height:2000px"></iframe>
<iframe src="{page}" style="width:1280px;height:2000px"></iframe>
<script>
addEventListener("load", () => {{
  const seen = [...document.querySelectorAll("iframe")].map((frame) => {{
    const page = frame.contentDocument;
    return {{
      over: page.documentElement.scrollWidth - frame.clientWidth,
      heading: page.querySelector("h1").textContent,
      drawings: [...page.querySelectorAll("svg")].map((drawing) => drawing.getBoundingClientRect().height),
      images: [...page.images].map((image) => image.naturalWidth),
    }};
  }});
  document.body.replaceChildren(JSON.stringify(seen));
}});
</script>
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample study in MSD layout: 9 phantoms in the pool, 2 labelled at the start, 3 to measure on; two steps."""
    folder = tmp_path_factory.mktemp("phantoms")
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir()
    names = sorted(path.name for path in (ROOT / "sample-data").glob("phantom_*.nii.gz"))
    for name in names:
        shutil.copy(ROOT / "sample-data" / name, folder / "imagesTr")
        known = [ROOT / "sample-data" / part / name for part in ("reference", "labels/final")]
        shutil.copy(next(path for path in known if path.exists()), folder / "labelsTr")
    (folder / "splits.json").write_text(json.dumps({"initial": 2, "pool": names[:9], "test": names[9:]}))
    (folder / "dataset.json").write_text(json.dumps({"name": "Phantoms", "licence": "CC0 1.0"}))
    (folder / "task.yaml").write_text(yaml.safe_dump(TASK))
    fields = {"task": str(folder / "task.yaml"), "data": str(folder), "budget": 4, "max_trainings": 2}
    (folder / "smoke.yaml").write_text(yaml.safe_dump({**fields, "arms": list(ARMS), "seeds": [7]}))
    return folder / "smoke.yaml"


@pytest.fixture(scope="module")
def runs(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that was killed after the first step of its first arm and started again, and one that was not."""
    killed, whole = (tmp_path_factory.mktemp("runs") / name for name in ("killed", "whole"))
    process = command(experiment, killed)
    try:
        wait_for(lambda: steps(killed, ARMS[0]), process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (killed / "summary.json").exists() or not json.loads((killed / "summary.json").read_text())["arms"]
    for run in (killed, whole):
        process = command(experiment, run)
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
    return killed, whole


@pytest.fixture(scope="module")
def page(runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the killed run, by the command."""
    out = tmp_path_factory.mktemp("report")
    arguments = [sys.executable, str(ROOT / "main.py"), "report", str(runs[0]), "--out", str(out)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, env=os.environ)
    assert done.returncode == 0, done.stderr
    return out / "report.html"


def test_killed_and_started_again_it_picks_and_measures_the_same(runs: tuple[Path, Path]) -> None:
    killed, whole = runs
    for arm in (*ARMS, "full"):
        assert steps(killed, arm) == steps(whole, arm)
        assert len(steps(whole, arm)) == 2
    assert len(steps(whole, "random")[0]["picks"]) == 2


def test_the_report_opens_in_a_browser_on_a_phone_and_on_a_desk(page: Path, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on PATH: apt-get install chromium")
    (tmp_path / "frames.html").write_text(FRAMES.format(page=page.as_uri()))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--disable-extensions"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--window-size=1800,2100"]
    shown = subprocess.run(
        [browser, *options, "--dump-dom", (tmp_path / "frames.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "CONSOLE" not in shown.stderr, shown.stderr
    found: list[dict[str, Any]] = json.loads(shown.stdout.split("<body>")[1].split("</body>")[0])
    for frame in found:
        assert frame["over"] <= 0  # nothing but tables, in frames of their own, is wider than the screen
        assert frame["heading"].startswith("No claim can be made with fewer than 5 seeds")
        assert len(frame["drawings"]) == 4
        assert min(frame["drawings"]) > 50
        assert len(frame["images"]) == 2 * 2
        assert min(frame["images"]) > 50
