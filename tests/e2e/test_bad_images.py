"""Files that cannot be used, in the studies folder: named, left out, and in nobody's way."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.e2e.server import PHANTOMS, SAMPLE, Server, copy_sample

pytestmark = pytest.mark.slow

# Id and a word of the sentence that has to name the reason.
BAD = {
    "bad_channels": "single-channel",
    "bad_constant": "same value",
    "bad_empty": "empty",
    "bad_flat": "single-channel",
    "bad_nan": "NaN",
    "bad_saturated": "99 %",
    "bad_text": "header",
    "bad_truncated": "complete",
}


def write(file: Path, voxels: NDArray[np.float32]) -> None:
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), file)


def write_bad_images(folder: Path) -> None:
    phantom = nibabel.load(SAMPLE / "phantom_02.nii.gz")
    assert isinstance(phantom, nibabel.Nifti1Image)
    good = np.asarray(phantom.dataobj, dtype=np.float32)
    write(folder / "bad_channels.nii.gz", np.stack([good, good, good], axis=-1))
    write(folder / "bad_constant.nii.gz", np.full_like(good, 7))
    (folder / "bad_empty.nii.gz").touch()
    write(folder / "bad_flat.nii.gz", good[:, :, 0])
    write(folder / "bad_nan.nii.gz", np.where(good > np.median(good), np.nan, good).astype(np.float32))
    # One voxel in a thousand is brighter: its percentiles coincide, so all of it becomes one grey value.
    saturated = np.full_like(good, 100)
    saturated.flat[::1000] = 5000
    write(folder / "bad_saturated.nii.gz", saturated)
    (folder / "bad_text.nii.gz").write_text("this is a letter, not a volume", encoding="utf-8")
    whole = (SAMPLE / "phantom_02.nii.gz").read_bytes()
    (folder / "bad_truncated.nii.gz").write_bytes(whole[: len(whole) // 2])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server after a short training; three of the bad images carry a label, as if somebody had put it there."""
    server = Server(tmp_path_factory.mktemp("bad"), {"task": "sample"})
    copy_sample(server.studies)
    write_bad_images(server.studies)
    for name in ("bad_nan", "bad_saturated", "bad_truncated"):
        shutil.copy(SAMPLE / "reference" / "phantom_02.nii.gz", server.studies / "labels" / "final" / f"{name}.nii.gz")
    try:
        server.start()
        # At once, so that the training meets them before anybody has looked at them.
        server.train(steps=2)
        yield server
    finally:
        server.kill()


def test_training_and_scoring_go_on_without_them(server: Server) -> None:
    stats = server.train_stats()
    assert stats["status"] == "done"
    assert stats["step"] == 2
    assert set(stats["unusable"]) == set(BAD)
    ranking = server.ranking()
    assert ranking
    assert set(ranking) <= set(PHANTOMS)
    validation = {image for (image,) in server.query("SELECT image FROM images WHERE validation = 1")}
    assert set(ranking) == set(PHANTOMS) - validation
    picks = server.query("SELECT picks FROM acquisitions")[0][0]
    assert "bad_" not in picks


def test_each_is_named_with_its_reason_in_its_info_and_in_the_log(server: Server) -> None:
    log = server.log()
    for image, word in BAD.items():
        sentence = server.image_info(image)["unusable"]
        assert sentence, f"{image} is not marked"
        assert image in sentence
        assert word in sentence
        assert sentence in log
    for phantom in PHANTOMS:
        assert server.image_info(phantom)["unusable"] is None


def test_a_scoring_run_names_the_one_that_came_later(server: Server) -> None:
    server.wait_scoring()
    (server.studies / "bad_later.nii.gz").write_text("no volume", encoding="utf-8")
    server.wait_for(lambda: server.image_info("bad_later").get("unusable"), "the mark of the new file")
    server.wait_scoring()
    tasks = server.request("GET", "/scoring/", params={"all": "true"}).json()
    assert all(task["status"] == "DONE" for task in tasks)
    assert any("bad_later" in line for task in tasks for line in task["details"])
    assert "bad_later" not in server.ranking()


def test_inference_on_one_is_refused_with_its_reason(server: Server) -> None:
    for image, word in BAD.items():
        if image != "bad_saturated":  # it can be looked at and labelled, only not scored
            answer = server.ohif_infer(image)
            assert answer.status_code == 422
            assert word in answer.json()["detail"]


def test_none_is_ever_proposed(server: Server) -> None:
    proposed = []
    for number in range(len(PHANTOMS) + 1):
        answer = server.next_sample(f"client {number}")
        proposed.append(answer.get("id"))
    assert proposed[-1] is None, "everybody holds one; the bad ones are not handed out even so"
    assert set(proposed) - {None} == {phantom for phantom in PHANTOMS if not server.image_info(phantom)["labelled"]}
