"""One active step over a pool: what is scored, ranked, queued and repeated, once, and again after a new label."""

import errno
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import psutil
import pytest
import torch
from sklearn.metrics import mutual_info_score

from svgd_label import active_step, similarity
from svgd_label.acquisition import strategy
from svgd_label.active_step import refresh_ranking, score_pool, write_first_order
from svgd_label.checkpoint import new_committee
from svgd_label.images import ImageError, load_volume
from svgd_label.pool import Database, Pool, Studies
from svgd_label.scoring import PreparedImage
from svgd_label.svgd import Committee
from svgd_label.tasks import Task
from svgd_label.tasks.transforms import prepare_image

from .conftest import blob, save_nifti

RULE = strategy("entropy_mi")
IMAGES = "abcdef"


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    folder = tmp_path / "studies"
    for number, image in enumerate(IMAGES):
        save_nifti(folder / f"{image}.nii.gz", blob((12, 13, 14), number)[0])
    pool = Pool(Database(tmp_path / "state", task="tiny"), validation="none", max_frequency=3)
    Studies(folder, pool).reconcile()
    yield pool
    pool.database.close()


@pytest.fixture
def paths(tmp_path: Path, pool: Pool) -> dict[str, str]:
    return {image: str(tmp_path / "studies" / f"{image}.nii.gz") for image in pool.pool_images()}


@pytest.fixture
def committee(tiny: Task) -> Committee:
    return new_committee(tiny, seed=0)


def test_a_step_queues_the_unlabelled_picks_and_repeats_the_labelled(
    pool: Pool, tiny: Task, committee: Committee, paths: dict[str, str]
) -> None:
    for image in IMAGES[:3]:
        pool.label_saved(image)
    result = score_pool(pool, tiny, committee, paths, version=1, strategy=RULE, seed=0)
    assert (result.scored, result.pool) == (6, 6)
    ranking = [row.image for row in pool.ranking()]
    step = result.acquisition
    assert step is not None
    assert step.picks == ranking[:2]
    assert step.annotated == [image for image in ranking[:2] if image not in IMAGES[:3]] == pool.queue()
    frequencies = {case.image: case.frequency for case in pool.training_list()}
    assert frequencies == {image: 1 + (image in ranking[:2]) for image in IMAGES[:3]}


def test_a_second_run_for_one_version_changes_nothing(
    pool: Pool, tiny: Task, committee: Committee, paths: dict[str, str]
) -> None:
    pool.label_saved("a")
    first = score_pool(pool, tiny, committee, paths, version=1, strategy=RULE, seed=0)
    before = pool.ranking(), pool.training_list(), pool.queue()
    second = score_pool(pool, tiny, committee, paths, version=1, strategy=RULE, seed=0)
    assert second.scored == 0
    assert second.acquisition == first.acquisition
    assert (pool.ranking(), pool.training_list(), pool.queue()) == before
    assert len(pool.acquisitions()) == 1


def test_a_killed_run_goes_on_where_it_was(pool: Pool, tiny: Task, committee: Committee, paths: dict[str, str]) -> None:
    class Killed(BaseException):
        pass

    def kill(done: int, total: int) -> None:
        if done == 4:
            raise Killed

    with pytest.raises(Killed):
        score_pool(pool, tiny, committee, paths, version=1, strategy=RULE, seed=0, on_progress=kill)
    assert pool.ranking() == []
    assert score_pool(pool, tiny, committee, paths, version=1, strategy=RULE, seed=0).scored == 2
    assert len(pool.ranking()) == 6


def test_an_image_replaced_while_the_pool_is_scored_is_scored_again(
    tmp_path: Path, pool: Pool, tiny: Task, committee: Committee, paths: dict[str, str]
) -> None:
    studies = Studies(tmp_path / "studies", pool)

    def replace(done: int, total: int) -> None:
        if done == 1:
            for image, known in (("a", True), ("e", False), ("f", True)):
                save_nifti(Path(paths[image]), blob((16, 15, 14), 99)[0])
                if known:  # the watcher has seen it at once, or will only later
                    studies.check([image], [])

    score_pool(pool, tiny, committee, paths, version=1, strategy=RULE, seed=0, on_progress=replace)
    studies.reconcile()
    assert pool.scored_images(1) == set("bcd")
    assert pool.codes(IMAGES).keys() == set("bcd")
    assert score_pool(pool, tiny, committee, paths, version=1, strategy=RULE, seed=0).scored == 3
    assert [row.image for row in pool.ranking()]
    assert len({row.entropy for row in pool.scores(1) if row.image in "aef"}) == 1


def test_a_newer_version_ends_an_older_run(
    tmp_path: Path, pool: Pool, tiny: Task, committee: Committee, paths: dict[str, str]
) -> None:
    def publish(done: int, total: int) -> None:
        if done == 2:
            pool.models.publish(2, tmp_path / "c.pt", {})

    result = score_pool(pool, tiny, committee, paths, version=1, strategy=RULE, seed=0, on_progress=publish)
    assert result.scored == 2
    assert result.acquisition is None
    assert pool.ranking() == []


def pairs_of(pool: Pool) -> set[tuple[str, str]]:
    return {tuple(row) for row in pool.database.connection.execute("SELECT image, partner FROM mutual_information")}


def test_a_new_label_computes_its_own_pairs_only_and_picks_nothing(
    pool: Pool, tiny: Task, committee: Committee, paths: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = 0
    original = similarity.mutual_information_matrix

    def counting(*arguments: Any, **options: Any) -> Any:
        nonlocal computed
        values = original(*arguments, **options)
        computed += int((~np.isnan(values)).sum())
        return values

    monkeypatch.setattr(similarity, "mutual_information_matrix", counting)
    pool.label_saved("a")
    score_pool(pool, tiny, committee, paths, version=1, strategy=RULE, seed=0)
    assert (computed, pairs_of(pool)) == (5, {(image, "a") for image in "bcdef"})
    queue = pool.queue()
    refresh_ranking(pool, tiny, version=1, strategy=RULE, seed=0)
    assert computed == 5
    pool.label_saved("b")
    refresh_ranking(pool, tiny, version=1, strategy=RULE, seed=0)
    assert computed == 5 + 4  # that of a and b was known the other way round
    assert pairs_of(pool) == {(image, partner) for image in IMAGES for partner in "ab" if image != partner}
    assert len(pool.acquisitions()) == 1
    assert pool.queue() == [image for image in queue if image != "b"]
    codes = pool.codes(list(IMAGES))
    for image in "ac":
        expected = np.mean([mutual_info_score(codes[image], codes[t]) for t in "ab" if t != image])
        found = {row.image: row.mutual_information for row in pool.ranking()}[image]
        assert found == pytest.approx(expected, abs=1e-9)

    pool.content_changed("c")
    score_pool(pool, tiny, committee, paths, version=1, strategy=RULE, seed=0)
    assert computed == 9 + 2
    pool.content_changed("b")
    score_pool(pool, tiny, committee, paths, version=1, strategy=RULE, seed=0)
    assert computed == 11 + 5  # b with a, and everything else with b
    pool.label_saved("e")
    pool.label_saved("f")
    refresh_ranking(pool, tiny, version=1, strategy=RULE, seed=0)
    assert computed == 16 + 2 + 2 + 1  # c and d with e and f, e with f


def test_a_restart_computes_no_pair_again(
    tmp_path: Path,
    pool: Pool,
    tiny: Task,
    committee: Committee,
    paths: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool.label_saved("a")
    score_pool(pool, tiny, committee, paths, version=1, strategy=RULE, seed=0)
    before = pool.ranking()
    pool.database.close()
    again = Pool(Database(tmp_path / "state", task="tiny"), validation="none", max_frequency=3)
    monkeypatch.setattr(similarity, "mutual_information_matrix", None)
    refresh_ranking(again, tiny, version=1, strategy=RULE, seed=0)
    assert again.ranking() == before
    again.database.close()


@pytest.mark.parametrize(
    "change", [{"alpha": 3.0}, {"mi_over": "max"}, {"mi_over": "sum"}, {"mi_bins": 16}, {"mi_bins": 128}]
)
def test_the_ranking_is_the_formula_with_the_tasks_settings(
    pool: Pool, tiny: Task, committee: Committee, paths: dict[str, str], change: dict[str, Any]
) -> None:
    task = tiny.model_copy(update=change)
    for image in "ab":
        pool.label_saved(image)
    score_pool(pool, task, committee, paths, version=1, strategy=RULE, seed=0)
    codes = pool.codes(list(IMAGES))
    assert 0.9 * task.mi_bins < max(int(values.max()) for values in codes.values()) < task.mi_bins
    combine = {"mean": np.mean, "max": np.max, "sum": np.sum}[task.mi_over]
    mi = np.array([combine([mutual_info_score(codes[i], codes[t]) for t in "ab" if t != i]) for i in IMAGES])
    h = np.array([row.entropy for row in pool.scores(1)])
    score = task.alpha * (h - h.min()) / np.ptp(h) - (mi - mi.min()) / np.ptp(mi) / task.alpha
    assert {row.image: row.score for row in pool.ranking()} == pytest.approx(dict(zip(IMAGES, score, strict=True)))


def test_scores_made_with_other_settings_are_made_again(
    pool: Pool, tiny: Task, committee: Committee, paths: dict[str, str]
) -> None:
    score_pool(pool, tiny, committee, paths, version=1, strategy=RULE, seed=0)
    other = tiny.model_copy(update={"aggregate": "sum"})
    assert score_pool(pool, other, committee, paths, version=1, strategy=RULE, seed=0).scored == 6


def test_a_strategy_that_labelled_images_leave_repeats_none(
    pool: Pool, tiny: Task, committee: Committee, paths: dict[str, str]
) -> None:
    for image in IMAGES[:5]:
        pool.label_saved(image)
    rule = strategy("entropy_mi_delete")
    step = score_pool(pool, tiny, committee, paths, version=1, strategy=rule, seed=0).acquisition
    assert step is not None
    assert (step.picks, step.repeated) == (["f"], [])
    assert {case.frequency for case in pool.training_list()} == {1}


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


def test_no_more_images_are_read_at_a_time_than_fit_into_memory(
    pool: Pool, tiny: Task, committee: Committee, paths: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, inside, most = threading.Lock(), 0, 0
    prepared = active_step.prepare

    def prepare(task: Task, image: str, path: str) -> PreparedImage:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.05)
        with lock:
            inside -= 1
        return prepared(task, image, path)

    monkeypatch.setattr(active_step, "prepare", prepare)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    size, found = 12 * 13 * 14 * 40, []
    for version, available in enumerate((100 * size, size + size // 2)):
        most = 0
        free = psutil.virtual_memory()._replace(available=available)
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: free)
        score_pool(pool, tiny, committee, paths, version=version, strategy=RULE, seed=0)
        found.append(most)
    assert found[0] > 1
    assert found[1] == 1


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


def test_the_first_order_looks_at_no_more_images_than_scoring_does(
    pool: Pool, tiny: Task, paths: dict[str, str]
) -> None:
    write_first_order(pool, tiny, paths, seed=0, limit=2)
    placed = [image for image, state in pool.overview.image_states().items() if state["first_position"] is not None]
    assert len(placed) == 2
    assert pool.coded_images() == set(placed)
    proposed = pool.next_image("anna")
    assert proposed is not None
    assert proposed.image in placed


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


def test_an_image_for_which_memory_runs_out_is_named_and_the_others_are_scored(
    pool: Pool, tiny: Task, committee: Committee, paths: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    b = prepare_image(tiny, paths["b"]).sum()

    def full(_: torch.nn.Module, given: tuple[torch.Tensor], output: torch.Tensor) -> None:
        if torch.isclose(given[0].sum(), b):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    committee.particles[0].register_forward_hook(full)
    result = score_pool(pool, tiny, committee, paths, version=1, strategy=RULE, seed=0)
    assert result.unusable == {"b": "b: cannot be scored (RuntimeError), see the log"}
    assert {row.image for row in pool.ranking()} == set("acdef")
    assert pool.overview.image_state("b")["unusable"] is None


def test_where_nothing_could_be_scored_the_picks_of_the_version_are_still_to_come(
    pool: Pool, tiny: Task, committee: Committee, paths: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    score_pool(pool, tiny, committee, paths, version=1, strategy=RULE, seed=0)
    before = pool.queue(), pool.ranking()
    with monkeypatch.context() as patch:
        full = psutil.virtual_memory()._replace(available=12 * 13 * 14 * 40)  # enough to read one, not to score it
        patch.setattr(psutil, "virtual_memory", lambda: full)
        result = score_pool(pool, tiny, new_committee(tiny, seed=1), paths, version=2, strategy=RULE, seed=0)
    assert set(result.unusable) == set(IMAGES)
    assert all("MB of memory, which are not free at present" in why for why in result.unusable.values())
    assert (result.acquisition, pool.unusable()) == (None, {})
    assert (pool.queue(), pool.ranking()) == before
    result = score_pool(pool, tiny, new_committee(tiny, seed=1), paths, version=2, strategy=RULE, seed=0)
    assert result.acquisition is not None
    assert pool.ranking_version() == 2


def test_a_fault_of_a_strategy_is_no_silence(
    pool: Pool, tiny: Task, committee: Committee, paths: dict[str, str]
) -> None:
    def broken(*_: object) -> NoReturn:
        raise ValueError("a strategy's own fault")

    with pytest.raises(ValueError, match="a strategy's own fault"):
        score_pool(pool, tiny, committee, paths, version=1, strategy=replace(RULE, score=broken), seed=0)


def test_over_the_limit_a_random_subset_and_all_labelled_are_scored(
    pool: Pool, tiny: Task, committee: Committee, paths: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    pool.label_saved("f")
    result = score_pool(pool, tiny, committee, paths, version=1, strategy=RULE, seed=0, limit=2)
    assert result.scored == 3
    assert "f" in {row.image for row in pool.ranking()}
    assert "a random 2 of them" in caplog.text


def test_before_any_score_the_order_is_diverse_and_skips_what_cannot_be_used(
    pool: Pool, tiny: Task, paths: dict[str, str]
) -> None:
    Path(paths["c"]).write_bytes(b"")
    write_first_order(pool, tiny, paths)
    seen = []
    for client in "12345":
        proposal = pool.next_image(client)
        assert proposal is not None
        assert proposal.source == "first"
        seen.append(proposal.image)
    assert set(seen) == set("abdef")
    assert pool.next_image("6") is None
