"""A labelled data set of small blobs in MSD layout, and an experiment on it that takes seconds."""

import json
import os
import subprocess
import sys
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
