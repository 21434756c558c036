"""What a query strategy is told of the pool in an active step, and that telling it again changes no noise."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import blob, save_nifti

from svgd_label.acquisition import STRATEGIES, Candidates, QueryStrategy, strategy
from svgd_label.active_step import refresh_ranking
from svgd_label.pool import Database, Pool, ScoreRow, Studies
from svgd_label.tasks import Task

IMAGES = "abcdef"


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    rng = np.random.default_rng(0)
    for number, image in enumerate(IMAGES):
        save_nifti(tmp_path / "studies" / f"{image}.nii.gz", blob((8, 8, 8), number)[0])
    pool = Pool(Database(tmp_path / "state", task="tiny"), validation="none", max_frequency=3)
    Studies(tmp_path / "studies", pool).reconcile()
    pool.write_codes({image: rng.integers(0, 64, 512, dtype=np.uint8) for image in IMAGES})
    yield pool
    pool.database.close()


def write_scores(pool: Pool, version: int) -> None:
    rng = np.random.default_rng(version)
    for number, image in enumerate(IMAGES):
        values = rng.random(4).tolist()
        details = {
            "volume_voxels": {"one": number, "two": 10 * number},
            "class_entropy": {"one": values[0] / 2, "two": values[0] / 4},
        }
        pool.write_score(version, ScoreRow(image, *values, details, rng.random(3).astype(np.float32)))


def seen(pool: Pool, task: Task, version: int) -> Candidates:
    """What ``refresh_ranking`` tells a strategy."""
    told = []

    def score(candidates: Candidates, _: Candidates) -> np.ndarray:
        told.append(candidates)
        return candidates.entropy

    refresh_ranking(pool, task, version=version, strategy=QueryStrategy("see", "", score, True), seed=0)
    return told[0]


def test_a_strategy_sees_what_scoring_has_stored(pool: Pool, tiny: Task) -> None:
    write_scores(pool, 1)
    pool.label_saved("c")
    told, rows = seen(pool, tiny, 1), pool.scores(1)
    assert told.images == tuple(IMAGES)
    assert told.labelled.tolist() == [image == "c" for image in IMAGES]
    assert told.volumes.tolist() == [[n, 10 * n] for n in range(6)]
    assert told.class_entropy == pytest.approx(np.outer([row.entropy for row in rows], [0.5, 0.25]))
    assert told.features == pytest.approx(np.array([row.features for row in rows]))
    assert told.gumbel.shape == (6, 3)
    assert (told.queries, told.alpha) == (tiny.queries, tiny.alpha)


def test_the_share_of_steps_that_is_over_is_counted_from_the_active_steps_before(pool: Pool, tiny: Task) -> None:
    task = tiny.model_copy(update={"clasp_steps": 4})
    for version, progress in ((0, 0.0), (1, 1 / 3), (5, 2 / 3), (6, 1.0), (7, 1.0)):
        write_scores(pool, version)
        assert seen(pool, task, version).progress == pytest.approx(progress)
        pool.acquire(version, "see", 1)
        assert seen(pool, task, version).progress == pytest.approx(progress)
    assert seen(pool, tiny.model_copy(update={"clasp_steps": 1}), 7).progress == 1


def test_rows_without_features_or_of_fewer_structures_are_ranked_nevertheless(pool: Pool, tiny: Task) -> None:
    write_scores(pool, 1)
    before = seen(pool, tiny, 1)
    pool.write_score(1, ScoreRow("b", 1.0, 1.0, 0.0, 0.0, {"volume_voxels": {"one": 7}}, None))
    told = seen(pool, tiny, 1)
    assert told.features[1] == pytest.approx(np.delete(before.features, 1, axis=0).mean(axis=0))
    assert told.volumes[1].tolist() == [7, 0]
    assert told.class_entropy[1].tolist() == [0, 0]
    for image in IMAGES:
        pool.write_score(1, ScoreRow(image, 1.0, 1.0, 0.0, 0.0))
    for rule in STRATEGIES.values():
        assert len(refresh_ranking(pool, tiny, version=1, strategy=rule, seed=0)) == 6


@pytest.mark.parametrize("name", ["random", "random_foreground", "power_noise"])
def test_a_new_label_leaves_the_others_in_their_order_and_a_new_version_does_not(
    pool: Pool, tiny: Task, name: str
) -> None:
    def ranked(version: int, seed: int = 0) -> str:
        ranking = refresh_ranking(pool, tiny, version=version, strategy=strategy(name), seed=seed)
        return "".join(image for image, _ in ranking)

    write_scores(pool, 1)
    before = ranked(1)
    assert len({ranked(1, seed) for seed in range(8)}) > 1
    assert ranked(1) == before
    pool.acquire(1, name, 2, repeat=0.0)
    pool.label_saved(before[2])
    assert ranked(1) == before.replace(before[2], "")
    noise = [seen(pool, tiny, 1).gumbel]
    for version in (2, 3):
        write_scores(pool, version)
        noise.append(seen(pool, tiny, version).gumbel)
    assert not np.isclose(noise[0], noise[1]).any()
    assert not np.isclose(noise[1], noise[2]).any()


def test_coreset_starts_from_what_is_labelled(pool: Pool, tiny: Task) -> None:
    places = dict(zip(IMAGES, (0.0, 1.0, 4.0, 9.0, 9.5, 20.0), strict=True))
    for image, place in places.items():
        pool.write_score(1, ScoreRow(image, 1.0, 1.0, 0.0, 0.0, {}, np.array([place], np.float32)))
    for image in "af":
        pool.label_saved(image)
    ranking = refresh_ranking(pool, tiny, version=1, strategy=strategy("coreset"), seed=0)
    assert [image for image, _ in ranking] == ["e", "c", "b", "d"]
    repeating = replace(strategy("coreset"), repeat=1.0)
    ranking = refresh_ranking(pool, tiny, version=1, strategy=repeating, seed=0)
    assert [image for image, _ in ranking] == ["e", "c", "b", "d", "a", "f"]
