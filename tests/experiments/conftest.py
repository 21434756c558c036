"""A labelled data set of small blobs in MSD layout, and an experiment on it that takes seconds."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tests.conftest import ROOT, blob, save_nifti

from svgd_label.experiments.experiment import Experiment
from svgd_label.experiments.run import Run

TINY = {
    "name": "tiny",
    "labels": ["one", "two"],
    "window": [16, 16, 16],
    "network": {"name": "UNet", "arguments": {"channels": [4, 8], "strides": [2]}},
    "particles": 2,
    "steps": 4,
    "batch": 2,
    "queries": 2,
    "mi_grid": [8, 8, 8],
}
KEEPING = {"name": "keeping", "strategy": "entropy", "repeat": True}


def command(file: Path, run: Path, *options: str) -> "subprocess.Popen[str]":
    """``python main.py experiment``, on one thread, so that its figures do not depend on who else computes."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), "experiment", str(file), "--run", str(run), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )


def steps(run: Path, arm: str, seed: int = 7) -> list[dict[str, Any]]:
    """What an arm has written, without what differs from run to run."""
    file = run / arm / f"seed-{seed}" / "steps.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def wait_for(condition: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    """Until something is there that a running process makes."""
    deadline = time.monotonic() + 400
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def line(step: int, distinct: int, dice: float, *, last: bool = False, **more: Any) -> dict[str, Any]:
    """A finished step whose five volumes have that mean Dice."""
    return {
        "step": step,
        "distinct": distinct,
        "mean_dice": dice,
        "volumes": {f"test_{number}": [dice + 0.01 * (number - 2)] for number in range(5)},
        "seconds": {"train": 60.0, "measure": 1.0},
        "unusable": {},
        "last": last,
        **more,
    }


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Six seeds of two arms, the first better by 0.02 to 0.07, and a third that stops short and is not ended once."""
    arm = {"strategy": "random", "repeat": None, "task": {}}
    names = ["entropy_mi", "random", "clasp_pe"]
    config = {"initial": 10, "budget": 20, "max_trainings": 9, "seeds": [*range(6)], "arms": dict.fromkeys(names, arm)}
    task = {"name": "tiny", "labels": ["one"], "window": [16, 16, 16]}
    data = {"folder": "/nowhere", "pool": ["a", "b", "c"], "evaluation": [f"test_{number}" for number in range(5)]}
    made = Run(tmp_path / "made", {**config, "task": task, "data": data, "split": "test"})
    for seed in range(6):
        gain = 0.02 + 0.01 * seed
        tracks = {
            "full": [line(1, 160, 0.9, last=True)],
            "random": [line(1, 10, 0.5, queued=["a"]), line(2, 20, 0.7, last=True)],
            "entropy_mi": [line(1, 10, 0.5 + gain, queued=["b"], repeated=["c"]), line(2, 20, 0.7 + gain, last=True)],
            "clasp_pe": [line(1, 10, 0.5), line(2, 15, 0.7), line(3, 15, 0.9 - 0.3 * gain, last=seed > 0)],
        }
        for name, lines in tracks.items():
            made.track(name, seed).folder.mkdir(parents=True)
            for entry in lines:
                made.track(name, seed).append(entry)
    return made


def small_experiment(folder: Path) -> dict[str, Any]:
    """10 volumes in the pool, 3 of them labelled at the start, 2 to measure on; three arms up to 6 volumes."""
    names = [f"blob_{number:02d}.nii.gz" for number in range(13)]
    for number, name in enumerate(names):
        image, label = blob((14, 15, 16), number)
        save_nifti(folder / "imagesTr" / name, image)
        save_nifti(folder / "labelsTr" / name, label)
    splits = {"initial": 3, "pool": names[:10], "test": names[10:12], "dev": names[12:]}
    (folder / "splits.json").write_text(json.dumps(splits))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return {
        "task": str(folder / "tiny.yaml"),
        "data": str(folder),
        "arms": ["entropy_mi_delete", "random", KEEPING],
        "seeds": [7],
        "budget": 6,
        "max_trainings": 4,
    }


def saturate(fields: dict[str, Any], seed: int = 7) -> str:
    """Makes one of a seed's initial volumes unusable; its id."""
    image = Run.plan(Path("unused"), Experiment.model_validate(fields)).initial_labels(seed)[0]
    values = np.full((14, 15, 16), 100.0, np.float32)
    values.flat[::1000] = 5000
    save_nifti(Path(fields["data"]) / "imagesTr" / f"{image}.nii.gz", values)
    return image


@pytest.fixture(scope="session")
def fields(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The small experiment."""
    return small_experiment(tmp_path_factory.mktemp("blobs"))


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any]) -> Path:
    """The same as a file."""
    path = tmp_path_factory.mktemp("experiment") / "small.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, file: Path) -> Path:
    """A run that nothing has interrupted."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    process = command(file, run)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return run
