"""One active step over a pool: what is scored, ranked, queued and repeated, once, and again after a new label."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score
from tests.active_step.conftest import IMAGES, RULE
from tests.conftest import blob, save_nifti

from svgd_label import similarity
from svgd_label.acquisition import strategy
from svgd_label.active_step import refresh_ranking, score_pool
from svgd_label.pool import Database, Pool, Studies
from svgd_label.svgd import Committee
from svgd_label.tasks import Task


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


def test_over_the_limit_a_random_subset_and_all_labelled_are_scored(
    pool: Pool, tiny: Task, committee: Committee, paths: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    pool.label_saved("f")
    result = score_pool(pool, tiny, committee, paths, version=1, strategy=RULE, seed=0, limit=2)
    assert result.scored == 3
    assert "f" in {row.image for row in pool.ranking()}
    assert "a random 2 of them" in caplog.text
