"""``--conf auto_train``: a training starts by itself after so many labels: once, in time, and after a kill."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import save_nifti
from tests.durability.study import make_study, random_label
from tests.e2e.server import Server

pytestmark = pytest.mark.slow

STARTS = "images have new labels: a training starts"


class Study:
    """A tiny study on a server that trains after two labels."""

    def __init__(self, folder: Path) -> None:
        self.images = make_study(folder, 8)
        self.server = Server(folder, {"task": str(folder / "tiny.yaml"), "auto_train": "2", "validation": "none"})
        self._rng = np.random.default_rng(0)
        self._file = folder / "label.nii.gz"

    def save(self, *numbers: int) -> None:
        for number in numbers:
            label = random_label(self._rng)
            save_nifti(self._file, label)
            params = {"label_info": [{"name": "one", "idx": 1}, {"name": "two", "idx": 2}]}
            self.server.slicer().save_label(self.images[number], str(self._file), params=params)

    def starts(self) -> int:
        return self.server.log().count(STARTS)

    def versions(self) -> list[int]:
        return [row[0] for row in self.server.query("SELECT version FROM models ORDER BY version")]

    def wait_version(self, version: int) -> None:
        self.server.wait_for(lambda: version in self.versions(), f"model version {version}")
        self.server.wait_training()

    def new_labels(self) -> int:
        training = self.server.request("GET", "/svgd/state").json()["training"]
        assert training["every"] == 2
        return int(training["new_labels"])


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    study = Study(tmp_path)
    try:
        study.server.start()
        yield study
    finally:
        study.server.kill()


def test_it_trains_after_every_two_labels_and_counts_on_over_a_restart(study: Study) -> None:
    study.save(0)
    assert study.new_labels() == 1
    study.save(0)
    assert study.new_labels() == 1, "an image counts once"
    assert study.starts() == 0
    study.save(1)
    study.wait_version(1)
    assert study.starts() == 1, "one training for two saves"
    assert study.new_labels() == 0
    # A correction and a first label, with a restart in between.
    study.save(0)
    study.server.kill()
    study.server.start()
    assert study.new_labels() == 1
    study.save(2)
    study.wait_version(2)
    assert study.starts() == 2
    assert study.server.train_stats()["training_list"].keys() == set(study.images[:3])


def test_labels_that_come_during_a_training_are_trained_on_after_it(study: Study) -> None:
    study.save(0)
    study.server.request("POST", "/train/svgd", json={"steps": 400})
    study.server.wait_training_step()
    study.save(1, 2, 3)
    assert study.versions() == [], "nothing starts beside a running training"
    study.wait_version(2)
    assert study.versions() == [1, 2]
    assert study.starts() == 1
    assert study.server.train_stats()["training_list"].keys() == set(study.images[:4])


def test_a_killed_server_trains_after_its_restart_and_a_stopped_training_is_not_started_again(study: Study) -> None:
    study.save(0, 1)
    study.server.wait_for(study.starts, "the start of a training")
    study.server.kill()
    study.server.start()
    study.server.wait_for(lambda: study.starts() == 2, "the training that was killed, started again")
    study.server.wait_for(lambda: study.server.request("DELETE", "/train/").json(), "the end of the training")
    study.server.wait_training()
    time.sleep(2)  # MONAI Label notes the second in which a training was asked for: one saved in it may not count
    study.save(2)
    assert study.new_labels() == 1
    assert study.versions() == []
    study.save(3)
    study.wait_version(1)
    assert study.starts() == 3


def test_labels_dropped_into_the_folder_count_but_alone_flagged_ones_start_nothing(study: Study) -> None:
    for image in study.images[:2]:
        study.server.request("POST", "/svgd/flag", params={"image": image}, json={"reason": "motion"})
    study.save(0, 1)
    assert study.new_labels() == 2
    assert study.starts() == 0, "there is nothing to train on"
    save_nifti(study.server.studies / "labels" / "final" / f"{study.images[2]}.nii.gz", np.ones((16, 16, 16), np.uint8))
    study.wait_version(1)
    assert list(study.server.train_stats()["training_list"]) == [study.images[2]]
