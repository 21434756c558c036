"""When the server decides to train by itself: what counts as new, what it waits for, what a stop and a restart do."""

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from monailabel.utils.async_tasks.utils import background_tasks

from svgd_label.pool import Database, LabelStore, Pool, Studies
from svgd_label.server import auto_train
from svgd_label.server.auto_train import AutoTrain, is_running, is_waiting
from svgd_label.server.training_lock import training_alone


class Desk:
    """A state store, and MONAI Label's list of background tasks, to which a start adds one."""

    def __init__(self, folder: Path) -> None:
        self.pool = Pool(Database(folder / "state", task="t"), validation="none", max_frequency=3)
        self.labels = LabelStore(Studies(folder, self.pool))
        self.started: list[dict[str, Any]] = []
        with self.pool.database.transaction() as connection:
            connection.executemany(
                "INSERT INTO images (image, name, ext, fingerprint) VALUES (?, '', '.nii.gz', '1:1')",
                [(image,) for image in "abcdef"],
            )

    def server(self) -> AutoTrain:
        """As after a start: of older trainings it knows only what was published."""
        background_tasks["train"].clear()
        decides = AutoTrain(2, self.pool, self.labels, self._start)
        decides.start()
        return decides

    def _start(self) -> None:
        # As if the training had been asked for some seconds ago: MONAI Label's times are whole seconds.
        asked = datetime.fromtimestamp(time.time() - 2)
        self.started.append({"status": "RUNNING", "start_ts": asked.strftime("%Y-%m-%d %H:%M:%S")})
        background_tasks["train"].append(self.started[-1])

    def save(self, decides: AutoTrain, images: str, *, ago: float = 0.0) -> None:
        with self.pool.database.transaction() as connection:
            for image in images:
                connection.execute(
                    "INSERT OR REPLACE INTO labels VALUES (?, 'final', '.nii.gz', '1:1', '{}', ?, NULL)",
                    (image, time.time() - ago),
                )
                self.pool.label_saved(image)
        for _ in images:
            decides.consider()

    def finish(self) -> None:
        """The running training publishes a model."""
        version = self.pool.models.next_version()
        self.pool.models.publish(version, Path(f"{version}.pt"), {"started": time.time()})
        self.started[-1]["status"] = "DONE"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(auto_train, "_LOOK_SECONDS", 0.01)
    monkeypatch.setitem(background_tasks, "train", [])
    monkeypatch.setitem(background_tasks, "scoring", [])
    return Desk(tmp_path)


def wait_for(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def stays(number: int, desk: Desk) -> bool:
    """Whether so many trainings have been started, and no further one is."""
    wait_for(lambda: len(desk.started) >= number)
    time.sleep(0.3)
    return len(desk.started) == number


def test_an_image_counts_once_and_two_saves_at_once_start_one_training(desk: Desk) -> None:
    server = desk.server()
    desk.save(server, "a")
    desk.save(server, "a")
    assert server.new_labels() == 1
    assert stays(0, desk)
    desk.save(server, "bc")
    assert stays(1, desk)


def test_a_correction_after_a_training_counts_again(desk: Desk) -> None:
    server = desk.server()
    desk.save(server, "ab", ago=5)
    wait_for(lambda: len(desk.started) == 1)
    desk.finish()
    assert server.new_labels() == 0
    desk.save(server, "ac")
    assert stays(2, desk)


@pytest.mark.parametrize("method", ["train", "scoring"])
def test_it_waits_for_what_is_running(desk: Desk, method: str) -> None:
    server = desk.server()
    other = {"status": "RUNNING", "start_ts": "2020-01-01 00:00:00"}
    queued = {"status": "SUBMITTED", "start_ts": "2020-01-01 00:00:00"}  # behind it, however long
    background_tasks[method] += [other, queued]
    desk.save(server, "ab")
    assert is_waiting(method)
    assert stays(0, desk)
    other["status"] = queued["status"] = "DONE"
    assert stays(1, desk)


def test_what_could_not_be_started_is_not_waited_for(desk: Desk) -> None:
    """MONAI Label's list keeps it as submitted for ever."""
    asked = datetime.fromtimestamp(time.time() - 30)
    lost = {"status": "SUBMITTED", "start_ts": asked.strftime("%Y-%m-%d %H:%M:%S")}
    background_tasks["train"].append(lost)
    assert is_running("train")
    lost["start_ts"] = "2020-01-01 00:00:00"
    assert not is_running("train")


def test_labels_from_the_future_are_not_new_after_every_training(desk: Desk) -> None:
    server = desk.server()
    desk.save(server, "ab", ago=-3600)
    assert server.new_labels() == 0
    desk.save(server, "cd", ago=-5)
    assert server.new_labels() == 2


def test_a_stopped_training_counts_until_the_server_is_started_again(desk: Desk) -> None:
    server = desk.server()
    desk.save(server, "ab", ago=5)
    wait_for(lambda: len(desk.started) == 1)
    desk.started[-1]["status"] = "STOPPED"
    desk.save(server, "c")
    assert stays(1, desk), "one new label"
    restarted = desk.server()
    assert restarted.new_labels() == 3
    restarted.consider()
    assert stays(2, desk), "a killed server goes on where it was"


def test_flagged_images_alone_are_nothing_to_train_on(desk: Desk) -> None:
    server = desk.server()
    desk.pool.flag("a", "motion")
    desk.pool.flag("b", "motion")
    desk.save(server, "ab")
    assert server.new_labels() == 2
    assert stays(0, desk)


def test_it_waits_for_a_training_that_has_outlived_its_server(desk: Desk) -> None:
    server = desk.server()
    with training_alone(desk.pool.database.folder):
        desk.save(server, "ab")
        assert stays(0, desk)
        assert server.new_labels() == 2
    assert stays(1, desk)


def test_a_training_from_the_future_hides_no_labels(desk: Desk) -> None:
    server = desk.server()
    desk.pool.models.publish(1, Path("1.pt"), {"started": time.time() + 3600})  # the clock was put back since
    desk.save(server, "ab")
    assert server.new_labels() == 2
