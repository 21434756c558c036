"""An experiment through a real server picks and learns what the same experiment does in process, killed or not."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from tests.experiments.conftest import command, saturate, small_experiment, steps

from svgd_label.experiments.experiment import ExperimentError
from svgd_label.experiments.server_process import served
from svgd_label.pool import FINAL, Database, LabelStore, Pool, Studies

pytestmark = pytest.mark.slow

ARMS = ("entropy_mi", "random")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment of which one initial volume cannot be used, which both routes have to find out by themselves."""
    folder = tmp_path_factory.mktemp("blobs")
    fields = {**small_experiment(folder), "arms": list(ARMS)}
    saturate(fields)
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory, file: Path) -> Path:
    run = tmp_path_factory.mktemp("in_process") / "run"
    finish(command(file, run))
    return run


def finish(process: "subprocess.Popen[str]") -> None:
    output, _ = process.communicate()
    assert process.returncode == 0, output


def scores(run: Path, arm: str) -> list[float]:
    """All figures behind the picks. Their last digits depend on the order in which pairs of images were compared."""
    return [
        value for line in steps(run, arm) for picked in line.get("scores", {}).values() for value in picked.values()
    ]


def without_scores(run: Path, arm: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "scores"} for line in steps(run, arm)]


def assert_alike(run: Path, other: Path, arm: str) -> None:
    """Picks, what was queued and repeated, frequencies, Dice of every volume, loss: everything but time."""
    assert without_scores(run, arm) == without_scores(other, arm)
    assert scores(run, arm) == pytest.approx(scores(other, arm), abs=1e-12)


def test_a_server_picks_and_learns_what_was_measured_without_one(tmp_path: Path, file: Path, in_process: Path) -> None:
    run = tmp_path / "run"
    finish(command(file, run, "--through-server"))
    for arm in ARMS:
        version = len(steps(run, arm))
        assert version >= 3
        assert_alike(run, in_process, arm)
        state = run / arm / "seed-7" / "state"
        file = torch.load(state / "committees" / f"{version:05d}.pt", weights_only=True)
        pool = Pool(Database(state), validation="none", max_frequency=10)
        assert file["metrics"] == pool.models.metrics(version)  # killed between the two, a server finds all in the file
    assert any(line.get("repeated") for line in steps(run, "entropy_mi"))
    assert steps(run, "full") == steps(in_process, "full")
    summary = "summary.json"
    assert (run / summary).read_bytes() == (in_process / summary).read_bytes()
    for picture in (in_process / "random" / "seed-7" / "pictures").iterdir():
        assert (run / "random" / "seed-7" / "pictures" / picture.name).exists()


def test_killed_again_and_again_it_ends_as_if_it_were_not(tmp_path: Path, file: Path, in_process: Path) -> None:
    run = tmp_path / "run"
    track = run / "entropy_mi" / "seed-7"
    stats, committees = track / "state" / "train_stats.json", track / "state" / "committees"
    moments: list[Callable[[], object]] = [
        lambda: stats.exists(),  # in the first training
        lambda: (track / "training.json").exists(),  # while the annotator labels
        lambda: (committees / "00002.pt").exists(),  # in the second training's scoring
    ]
    only = ("--arms", "entropy_mi", "--through-server")
    for moment in moments:
        process = command(file, run, *only)
        try:
            while not moment():
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.002)
            started = psutil.Process(process.pid).children(recursive=True)
        finally:
            process.kill()
            process.wait()
        assert started
        _, left = psutil.wait_procs(started, timeout=60)
        assert not left, "the server and its training go with the experiment"
    finish(command(file, run, *only))
    assert_alike(run, in_process, "entropy_mi")
    database = Database(track / "state")
    pool = Pool(database, validation="none", max_frequency=10)
    assert pool.models.newest() == len(steps(run, "entropy_mi"))  # none made twice
    saved = LabelStore(Studies(track / "studies", pool)).versions()
    queued = [image for line in steps(run, "entropy_mi")[:-1] for image in line["queued"]]
    assert sorted(version.image for version in saved) == sorted(queued)  # each once
    assert len(list((track / "studies" / "labels" / FINAL).iterdir())) == 3 + len(queued)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    server = served(tmp_path / "studies", tmp_path / "task.yaml", {}, tmp_path / "server.log")
    with pytest.raises(ExperimentError, match=r"it has ended \(Error: .*task.yaml: the task cannot be read"), server:
        pass
