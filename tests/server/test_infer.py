"""What the two inference tasks answer: files on the image's grid, what is said beside them, and refusals."""

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from fastapi import HTTPException
from numpy.typing import NDArray
from tests.conftest import blob, save_nifti

from svgd_label.bands import BANDS, thresholds
from svgd_label.checkpoint import new_committee, save
from svgd_label.pool import Database, Pool, ScoreRow, Studies
from svgd_label.server.committees import PLACES, Committees
from svgd_label.server.infer import CommitteeInfer, SVGDInfer, UncertaintyInfer
from svgd_label.tasks import Task

TINY = Task.model_validate(
    {
        "name": "tiny",
        "labels": ["one", "two"],
        "window": [16, 16, 16],
        "network": {"name": "UNet", "arguments": {"channels": [4, 8], "strides": [2]}},
        "particles": 2,
    }
)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
SHAPE = (12, 13, 14)


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """Eleven images."""
    for number, name in enumerate("abcdefghijk"):
        save_nifti(tmp_path / "studies" / f"{name}.nii.gz", blob(SHAPE, number)[0], AFFINE)
    return tmp_path / "studies"


@pytest.fixture
def committees(tmp_path: Path, studies: Path) -> Iterator[Committees]:
    """Model version 1, nothing labelled."""
    database = Database(tmp_path / "state", task="tiny")
    committees = Committees(Pool(database, validation="none", max_frequency=3), TINY, tmp_path / "committees")
    Studies(studies, committees.pool).reconcile()
    save(committees.file(1), new_committee(TINY, seed=0), TINY, version=1)
    committees.pool.models.publish(1, committees.file(1), {})
    yield committees
    database.close()


def ask(task: CommitteeInfer, **request: Any) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    file, said = task(request)
    image = nibabel.load(file)
    assert isinstance(image, nibabel.Nifti1Image)
    np.testing.assert_allclose(image.affine, AFFINE)
    values = np.asarray(image.dataobj)
    Path(file).unlink()
    assert said.pop("latencies")["total"] >= 0
    return values, said


def test_volumes_of_each_structure_with_the_spread_of_the_particles(committees: Committees, studies: Path) -> None:
    labels, said = ask(SVGDInfer(committees), image=str(studies / "a.nii.gz"))
    assert said["label_names"] == {"one": 1, "two": 2}
    assert said["model_version"] == 1
    for name, value in said["label_names"].items():
        volume = said["volumes"][name]
        assert volume["ml"] == pytest.approx(np.count_nonzero(labels == value) * 0.002)
        assert 0 <= volume["lowest"] <= volume["highest"] <= np.prod(SHAPE) * 0.002


def test_bands_come_with_their_thresholds_and_the_slice_to_look_at_first(committees: Committees, studies: Path) -> None:
    bands, said = ask(UncertaintyInfer(committees), image=str(studies / "a.nii.gz"))
    assert bands.shape == SHAPE
    assert set(np.unique(bands)) <= {0, *BANDS.values()}
    assert bands.any()
    assert said["label_names"] == {"unsure": 1, "very unsure": 2}
    assert said["model_version"] == 1
    assert said["thresholds"] == pytest.approx(thresholds(), abs=1e-4)
    first = said["look_first"]
    assert (first["axis"], first["plane"]) == (2, "axial"), "the voxels are longest from feet to head"
    assert first["index"] == int(bands.sum(axis=(0, 1)).argmax())
    assert first["words"].startswith(f"axial slice {first['index'] + 1} of {SHAPE[2]}, counted from the feet")


def test_both_tasks_and_a_second_request_share_one_pass(committees: Committees, studies: Path) -> None:
    current = committees.current()
    assert current is not None
    passes: list[object] = []
    current.committee.particles[0].register_forward_hook(lambda *_: passes.append(None))
    tasks = (SVGDInfer(committees), UncertaintyInfer(committees))
    first = [ask(task, image=str(studies / "a.nii.gz")) for task in tasks]
    again = [ask(task, image=str(studies / "a.nii.gz")) for task in tasks]
    assert len(passes) == 1
    for (values, said), (values_again, said_again) in zip(first, again, strict=True):
        np.testing.assert_array_equal(values, values_again)
        assert said == said_again


def test_two_requests_at_once_share_one_pass(committees: Committees, studies: Path) -> None:
    current = committees.current()
    assert current is not None
    passes: list[object] = []
    current.committee.particles[0].register_forward_hook(lambda *_: passes.append(None))
    with ThreadPoolExecutor(2) as executor, committees.lock:
        asked = [executor.submit(committees.segment, str(studies / "a.nii.gz")) for _ in range(2)]
        wait(asked, timeout=1)  # both have found nothing and stand before the lock
    assert all(answer.result() for answer in asked)
    assert len(passes) == 1


def test_a_crowd_before_the_committee_leaves_threads_to_whoever_saves(committees: Committees, studies: Path) -> None:
    task = SVGDInfer(committees)
    ask(task, image=str(studies / "k.nii.gz"))
    requests = [{"image": str(studies / f"{name}.nii.gz")} for name in "abcdefghi"]
    with ThreadPoolExecutor(len(requests)) as executor:
        with committees.lock:
            asked = [executor.submit(task, request) for request in requests]
            (refused,), waiting = wait(asked, timeout=60, return_when=FIRST_COMPLETED)
            assert len(waiting) == PLACES
            ask(task, image=str(studies / "k.nii.gz"))  # which is remembered, and waits for nobody
        error = refused.exception()
        assert isinstance(error, HTTPException)
        assert (error.status_code, error.detail) == (503, "8 images are being segmented or wait for it: try again")
        for answer in waiting:
            Path(answer.result()[0]).unlink()
    ask(task, **requests[asked.index(refused)])


def test_an_image_that_goes_while_it_waits_is_not_there(committees: Committees, studies: Path) -> None:
    image = studies / "a.nii.gz"
    with ThreadPoolExecutor(1) as executor:
        with committees.lock:
            asked = executor.submit(SVGDInfer(committees), {"image": str(image)})
            wait([asked], timeout=1)
            image.unlink()
        error = asked.exception()
    assert isinstance(error, HTTPException)
    assert (error.status_code, error.detail) == (404, "there is no such image on this server")


def test_a_graphics_card_that_a_training_has_filled_is_a_sentence(committees: Committees, studies: Path) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    current = committees.current()
    assert current is not None
    hook = current.committee.particles[0].register_forward_hook(full)
    with pytest.raises(HTTPException, match="the memory of the graphics card is in use") as refused:
        SVGDInfer(committees)({"image": str(studies / "a.nii.gz")})
    assert refused.value.status_code == 503
    hook.remove()
    ask(SVGDInfer(committees), image=str(studies / "a.nii.gz"))


def test_an_image_is_compared_with_the_labelled_ones_once_ten_are_scored(committees: Committees, studies: Path) -> None:
    pool, task, image = committees.pool, SVGDInfer(committees), str(studies / "k.nii.gz")
    proposed = committees.segment(image)
    assert proposed is not None
    features = proposed[1].features
    for number, name in enumerate("abcdefghij"):
        assert "unlike_labelled" not in ask(task, image=image)[1]
        pool.label_saved(name)
        # One labelled image after the other, each 0.1 further away along the first feature; the first at half of that.
        away = np.eye(1, len(features), dtype=np.float32)[0] * (0.05 + 0.1 * number)
        for version, place in ((1, features + away), (2, features + 100)):
            pool.write_score(version, ScoreRow(name, 0.5, 0.5, 0.1, 0.1, features=place))
    said = ask(task, image=image)[1]["unlike_labelled"]
    assert not said["unlike"]
    assert (said["distance"], said["limit"]) == pytest.approx((0.05, 0.1), abs=1e-3)
    assert said["words"] == "To the committee this image looks like some of the 10 labelled images."

    for number, name in enumerate("abcdefghij"):  # the committee's next look: all labelled ones have moved away
        place = features + 1 + 0.01 * np.float32(number)
        pool.write_score(1, ScoreRow(name, 0.5, 0.5, 0.1, 0.1, features=place))
    said = ask(task, image=image)[1]["unlike_labelled"]
    assert said["unlike"]
    assert "looks unlike every one of the 10 labelled images: check its proposal with care." in said["words"]


@pytest.mark.parametrize("task", [SVGDInfer, UncertaintyInfer])
def test_what_cannot_be_answered_is_refused_with_a_sentence(
    committees: Committees, studies: Path, task: type[SVGDInfer | UncertaintyInfer]
) -> None:
    infer, image = task(committees), str(studies / "a.nii.gz")
    (studies / "g.nii.gz").write_bytes(b"half a file")
    for request, status, words in (
        ({"image": str(studies / "z.nii.gz")}, 404, "no such image"),
        ({"image": image, "result_extension": ".png"}, 415, ".nii.gz, .nii, .nrrd"),
        ({"image": str(studies / "g.nii.gz")}, 422, "g.nii.gz"),
    ):
        with pytest.raises(HTTPException, match=words) as refused:
            infer(request)
        assert refused.value.status_code == status
    committees.pool.models.withdraw(1)
    with pytest.raises(HTTPException, match="no trained committee yet") as refused:
        infer({"image": image})
    assert refused.value.status_code == 409
