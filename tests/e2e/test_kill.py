"""SIGKILL in the middle of the work: what was acknowledged is there after a restart, and the work goes on."""

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.e2e.server import PHANTOMS, SAMPLE, Server, copy_sample, reference

pytestmark = pytest.mark.slow

MORE = 60
"""Images that are dropped into the folder, so that a scoring run takes long enough to be met in the middle."""


@dataclass
class Trained:
    """A server with one published committee, and what it answered."""

    server: Server
    segmentation: NDArray[np.uint8]
    ranking: list[str]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    server = Server(tmp_path_factory.mktemp("kill"), {"task": "sample"})
    copy_sample(server.studies)
    try:
        server.start().train(steps=3)
        segmentation = np.asarray(server.infer("phantom_02")[0].dataobj)
        yield Trained(server, segmentation, server.ranking())
    finally:
        server.kill()


def assert_the_last_good_committee_answers(study: Trained) -> None:
    result, params = study.server.infer("phantom_02")
    assert params["model_version"] == 1
    np.testing.assert_array_equal(np.asarray(result.dataobj), study.segmentation)


def test_killed_in_training_and_right_after_a_label_was_saved(study: Trained) -> None:
    server = study.server
    labels = server.label_bytes()
    server.slicer().train_start("svgd", {"steps": 100_000})
    assert server.wait_training_step()["version"] == 2
    answer = server.save_label("phantom_02", reference("phantom_02"))
    server.kill()
    assert answer["image"] == "phantom_02"
    saved = server.label_bytes()
    assert saved == {**labels, "phantom_02.nii.gz": saved["phantom_02.nii.gz"]}

    server.start()
    assert server.label_bytes() == saved
    for name, content in saved.items():
        stored = server.request("GET", "/datastore/label", params={"label": name[:-7], "tag": "final"})
        assert stored.content == content
    assert server.slicer().info()["datastore"]["completed"] == 5
    assert server.image_info("phantom_02")["labelled"]
    assert_the_last_good_committee_answers(study)
    assert set(server.ranking()) | {"phantom_02"} == set(study.ranking)
    assert server.next_sample("slicer")["from"] in ("queue", "ranking")
    assert server.train_stats()["status"] == "stopped"
    assert server.query("SELECT version FROM models WHERE version > 0") == [(1,)]


def test_killed_in_scoring(study: Trained) -> None:
    server = study.server
    server.wait_scoring()
    labels = server.label_bytes()
    more = [f"more_{number:03}" for number in range(MORE)]
    for number, name in enumerate(more):
        shutil.copy(SAMPLE / f"{PHANTOMS[number % len(PHANTOMS)]}.nii.gz", server.studies / f"{name}.nii.gz")

    def scored() -> int:
        return int(server.query("SELECT COUNT(*) FROM scores WHERE image LIKE 'more_%'")[0][0])

    server.wait_for(lambda: scored() > 0, "the first score of a new image")
    server.kill()
    assert 0 < scored() < MORE, "the kill came in the middle"
    assert not set(more) & set(server.ranking())
    kept = server.query("SELECT image, entropy FROM scores WHERE image LIKE 'more_%' ORDER BY image")

    server.start()
    assert server.label_bytes() == labels
    assert_the_last_good_committee_answers(study)
    server.wait_for(lambda: set(more) <= set(server.ranking()), "a ranking with the new images")
    assert set(server.query("SELECT image, entropy FROM scores")) >= set(kept), "scores that were there are kept"
    pool = set(PHANTOMS) - {image for (image,) in server.query("SELECT image FROM images WHERE validation = 1")}
    assert set(server.ranking()) == pool | set(more)
    # Scoring again for one model version is no new active step.
    assert server.query("SELECT version FROM acquisitions WHERE version > 0") == [(1,)]


def test_killed_between_ranking_and_picks(study: Trained) -> None:
    server = study.server
    server.wait_scoring()
    server.kill()
    with contextlib.closing(sqlite3.connect(server.studies / ".svgd" / "state.sqlite")) as connection, connection:
        connection.execute("DELETE FROM acquisitions WHERE version = 1")
        connection.execute("UPDATE images SET queue_position = NULL")
    server.start()
    server.wait_for(lambda: server.query("SELECT version FROM acquisitions WHERE version = 1"), "the picks")
    assert server.next_sample("another")["from"] == "queue"
