"""Images that are away, broken or answered with NaN spoil neither the others nor the picks."""

import errno
import logging
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from tests.active_step.conftest import IMAGES, RULE
from tests.conftest import save_nifti

from svgd_label.active_step import score_pool, write_first_order
from svgd_label.checkpoint import new_committee
from svgd_label.images import ImageError, load_volume
from svgd_label.pool import Pool
from svgd_label.svgd import Committee
from svgd_label.tasks import Task
from svgd_label.tasks.transforms import prepare_image


def test_images_that_cannot_be_used_are_named_and_never_ranked(
    tmp_path: Path,
    pool: Pool,
    tiny: Task,
    committee: Committee,
    paths: dict[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    Path(paths["b"]).write_bytes(b"")
    save_nifti(Path(paths["d"]), np.zeros((12, 13, 14), np.float32))
    Path(paths["e"]).unlink()
    with caplog.at_level(logging.WARNING):
        result = score_pool(pool, tiny, committee, paths, version=1, strategy=RULE, seed=0)
    assert set(result.unusable) == {"b", "d", "e"}
    assert {row.image for row in pool.ranking()} == {"a", "c", "f"}
    for image in "bde":
        assert f"{image}.nii.gz" in caplog.text
    for image in "bd":
        assert pool.overview.image_state(image)["unusable"] == result.unusable[image]
    # A file that is away may come back, without anybody having to clear a mark.
    assert pool.overview.image_state("e")["unusable"] is None


def test_picks_wait_for_images_that_are_away(
    pool: Pool, tiny: Task, committee: Committee, paths: dict[str, str], tmp_path: Path
) -> None:
    """As where a share is gone in the middle: a version picks once, and not from what is left."""
    for image in "bcde":
        Path(paths[image]).rename(tmp_path / image)
    result = score_pool(pool, tiny, committee, paths, version=1, strategy=RULE, seed=0, tolerated=0.5)
    assert {row.image for row in pool.ranking()} == {"a", "f"}
    assert (result.acquisition, pool.queue()) == (None, [])
    for image in "bcd":
        (tmp_path / image).rename(paths[image])
    result = score_pool(pool, tiny, committee, paths, version=1, strategy=RULE, seed=0, tolerated=0.5)
    assert result.acquisition is not None, "one that stays away does not keep the others"
    assert result.acquisition.picks == [row.image for row in pool.ranking()][:2]
    assert len(pool.ranking()) == 5


@pytest.mark.parametrize("error", [OSError(errno.ESTALE, "stale"), PermissionError(errno.EACCES, "no"), MemoryError()])
def test_a_share_that_fails_takes_no_image_out(
    pool: Pool,
    tiny: Task,
    committee: Committee,
    paths: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def fail(_: Path) -> NoReturn:
        raise error

    pool.label_saved("a")
    with monkeypatch.context() as patch:
        patch.setattr("svgd_label.images.open_volume", fail)
        result = score_pool(pool, tiny, committee, paths, version=1, strategy=RULE, seed=0)
        write_first_order(pool, tiny, paths)
    assert all("cannot be read at present" in why for why in result.unusable.values())
    assert result.unusable.keys() == set(IMAGES)
    assert (pool.unusable(), pool.labelled()) == ({}, ["a"])


def test_an_image_that_comes_while_others_are_looked_at_waits_for_its_turn(
    pool: Pool, tiny: Task, committee: Committee, paths: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path / "studies")  # which is not the image's own folder
    known = {image: paths[image] for image in "acdef"}
    score_pool(pool, tiny, committee, known | {"f": ""}, version=1, strategy=RULE, seed=0)
    write_first_order(pool, tiny, known)
    assert pool.unusable() == {}
    assert {row.image for row in pool.ranking()} == set("acde")
    with pytest.raises(ImageError, match="gone") as caught:
        load_volume("")
    assert caught.value.passing


def test_an_image_on_which_the_network_comes_to_nan_is_named_and_spoils_no_other(
    pool: Pool, tiny: Task, committee: Committee, paths: dict[str, str]
) -> None:
    b = prepare_image(tiny, paths["b"]).sum()  # to which the network's padding adds nothing
    committee.particles[0].register_forward_hook(
        lambda _, given, output: output * (np.nan if torch.isclose(given[0].sum(), b) else 1)
    )
    result = score_pool(pool, tiny, committee, paths, version=1, strategy=RULE, seed=0)
    assert list(result.unusable) == ["b"]
    assert result.unusable["b"].startswith("b: the network's answer holds NaN")
    assert {row.image for row in pool.ranking()} == set("acdef")
    assert result.acquisition is not None
    score_pool(pool, tiny, new_committee(tiny, seed=1), paths, version=2, strategy=RULE, seed=0)
    assert {row.image for row in pool.ranking()} == set(IMAGES), "the fault was the committee's"


def test_a_fault_of_a_strategy_is_no_silence(
    pool: Pool, tiny: Task, committee: Committee, paths: dict[str, str]
) -> None:
    def broken(*_: object) -> NoReturn:
        raise ValueError("a strategy's own fault")

    with pytest.raises(ValueError, match="a strategy's own fault"):
        score_pool(pool, tiny, committee, paths, version=1, strategy=replace(RULE, score=broken), seed=0)
