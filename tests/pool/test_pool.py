"""Frequencies, validation, models, ranking and acquisition follow the method."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from svgd_label.pool import Database, OutdatedVersion, Pool, RankingRow, ScoreRow, TrainingCase


def rank(pool: Pool, version: int, images: str) -> None:
    pool.replace_ranking(version, [RankingRow(image, 1.0 - i / 10, 0.5, 0.1) for i, image in enumerate(images)])


def frequencies(pool: Pool) -> dict[str, int]:
    return {case.image: case.frequency for case in pool.training_list()}


def test_the_first_label_gives_frequency_one_and_a_correction_changes_nothing(pool: Pool) -> None:
    pool.label_saved("b")
    pool.label_saved("b")
    assert pool.training_list() == [TrainingCase("b", 1)]
    assert pool.labelled() == ["b"]


def test_a_deleted_label_leaves_the_training_list_and_comes_back_with_one(pool: Pool) -> None:
    pool.label_saved("a")
    rank(pool, 0, "abc")
    pool.acquire(0, "entropy_mi", 1)
    assert frequencies(pool) == {"a": 2}
    pool.label_removed("a")
    assert frequencies(pool) == {}
    assert pool.overview.image_state("a")["frequency"] == 0
    pool.label_saved("a")
    assert frequencies(pool) == {"a": 1}


def test_each_fifth_labelled_image_validates_at_most_twenty(
    database: Database, add_images: Callable[[list[str]], None]
) -> None:
    images = [f"{i:03}" for i in range(150)]
    add_images(images)
    pool = Pool(database, validation="fifth", max_frequency=10)
    for image in images[:7]:
        pool.label_saved(image)
    assert pool.validation_list() == ["004"]
    pool.labels_found(reversed(images[7:]))  # found together: decided by id
    assert pool.validation_list() == [f"{i:03}" for i in range(4, 100, 5)]
    assert len(pool.validation_list()) == 20
    assert len(pool.training_list()) == 130
    assert not set(pool.validation_list()) & set(pool.pool_images())


def test_the_decision_on_validation_outlives_the_label(database: Database, add_images: Callable[[str], None]) -> None:
    add_images("abcdef")
    pool = Pool(database, validation="fifth", max_frequency=10)
    pool.labels_found("abcde")
    pool.label_removed("e")
    assert pool.validation_list() == []
    assert "e" not in pool.pool_images()
    pool.label_saved("f")
    pool.label_saved("e")
    assert pool.validation_list() == ["e"]
    assert pool.overview.image_state("e")["frequency"] == 0


def test_an_image_acquired_twice_stands_twice_and_never_in_validation(
    database: Database, add_images: Callable[[str], None]
) -> None:
    add_images("abcdefg")
    pool = Pool(database, validation="fifth", max_frequency=10)
    pool.labels_found("abcde")
    rank(pool, 1, "eabcdfg")
    assert pool.acquire(1, "entropy_mi", 1).repeated == ["a"]
    assert frequencies(pool) == {"a": 2, "b": 1, "c": 1, "d": 1}
    assert pool.validation_list() == ["e"]


def test_one_step_for_one_version(pool: Pool) -> None:
    pool.label_saved("a")
    rank(pool, 1, "acbdefghij")
    first = pool.acquire(1, "entropy_mi", 3)
    assert (first.step, first.version, first.strategy) == (1, 1, "entropy_mi")
    assert (first.picks, first.annotated, first.repeated) == (["a", "c", "b"], ["c", "b"], ["a"])
    assert frequencies(pool) == {"a": 2}
    assert pool.queue() == ["c", "b"]
    rank(pool, 1, "jihgfedcba")  # a new label alone refreshes the ranking, not the picks
    assert pool.acquire(1, "entropy", 9) == first
    assert frequencies(pool) == {"a": 2}
    assert pool.queue() == ["c", "b"]
    assert pool.acquisitions() == [first]


def test_each_step_replaces_the_queue(pool: Pool) -> None:
    rank(pool, 1, "abc")
    pool.acquire(1, "entropy_mi", 2)
    pool.label_saved("a")
    assert pool.queue() == ["b"]
    rank(pool, 2, "defabc")
    pool.acquire(2, "entropy_mi", 2)
    assert pool.queue() == ["d", "e"]


def test_a_full_frequency_is_passed_over(pool: Pool) -> None:
    pool.label_saved("a")
    for version, expected in ((1, ["a"]), (2, ["a"]), (3, ["b"]), (4, ["b"])):
        rank(pool, version, "abc")
        assert pool.acquire(version, "entropy_mi", 1).picks == expected
    assert frequencies(pool) == {"a": 3}


def test_strategies_that_labelled_images_leave_do_not_repeat(pool: Pool) -> None:
    pool.label_saved("a")
    rank(pool, 1, "abc")
    assert pool.acquire(1, "random", 2, repeat=0.0).annotated == ["b", "c"]
    assert frequencies(pool) == {"a": 1}


def test_labelled_images_have_their_share_of_the_picks_and_no_more(pool: Pool) -> None:
    for image in "abd":
        pool.label_saved(image)
    rank(pool, 1, "abcde")
    taken = pool.acquire(1, "entropy_mi", 3, repeat=0.5)
    assert (taken.picks, taken.annotated, taken.repeated) == (["a", "c", "e"], ["c", "e"], ["a"])
    assert set(taken.scores) == {"a", "c", "e"}
    rank(pool, 2, "abcde")
    assert pool.acquire(2, "entropy_mi", 4, repeat=0.5).picks == ["a", "b", "c", "e"]


def test_older_versions_cannot_undo_newer_ones(pool: Pool) -> None:
    rank(pool, 2, "abc")
    pool.acquire(2, "entropy_mi", 1)
    with pytest.raises(OutdatedVersion):
        rank(pool, 1, "cba")
    with pytest.raises(OutdatedVersion):
        pool.acquire(1, "entropy_mi", 1)
    with pytest.raises(OutdatedVersion, match="the ranking is of version 2, not of 3"):
        pool.acquire(3, "entropy_mi", 1)
    assert [row.image for row in pool.ranking()] == ["a", "b", "c"]


@pytest.mark.parametrize("put_out", ["mark_unusable", "flag"])
def test_unusable_and_flagged_images_stand_outside_until_undone(pool: Pool, put_out: str) -> None:
    pool.labels_found("ab")
    rank(pool, 1, "acdb")
    for image in "ac":
        getattr(pool, put_out)(image, "motion")
    assert frequencies(pool) == {"b": 1}
    assert not {"a", "c"} & set(pool.pool_images())
    assert pool.acquire(1, "entropy_mi", 1).picks == ["d"]
    assert pool.overview.image_state("a")["unusable" if put_out == "mark_unusable" else "flagged"] == "motion"
    pool.made_with("another normalisation, after which it may not be saturated")
    pool.flag("a", None)
    assert frequencies(pool) == {"a": 1, "b": 1}


def test_the_newest_published_committee_is_the_model(pool: Pool, database: Database, tmp_path: Path) -> None:
    assert pool.models.newest() is None
    assert pool.models.file() is None
    pool.models.publish(0, tmp_path / "shipped.pt", {})
    assert pool.models.next_version() == 1
    inside = database.folder / "committees" / "1.pt"
    pool.models.publish(1, inside, {"dice": 0.5})
    assert (pool.models.newest(), pool.models.file(), pool.models.metrics(1)) == (1, inside, {"dice": 0.5})
    with pytest.raises(ValueError, match="cannot be"):
        pool.models.publish(1, tmp_path / "other.pt", {})
    pool.models.withdraw(1)
    assert pool.models.file() == tmp_path / "shipped.pt"


def test_the_number_of_a_withdrawn_version_that_acquired_is_not_given_again(pool: Pool, tmp_path: Path) -> None:
    pool.models.publish(1, tmp_path / "1.pt", {})
    rank(pool, 1, "abc")
    pool.acquire(1, "entropy_mi", 1)
    pool.models.withdraw(1)
    assert pool.models.next_version() == 2


def test_the_number_of_any_withdrawn_version_is_not_given_again(pool: Pool, tmp_path: Path) -> None:
    for version in (1, 2):
        pool.models.publish(version, tmp_path / f"{version}.pt", {})
    for version in (2, 1):
        pool.models.withdraw(version)
    assert pool.models.newest() is None
    assert pool.models.next_version() == 3


def test_scores_are_of_a_version_and_of_a_file(pool: Pool) -> None:
    features = np.arange(4, dtype=np.float32)
    row = ScoreRow("a", 0.1, 0.2, 0.3, 0.4, {"volume": [1, 2]}, features)
    pool.write_score(1, row)
    pool.write_score(1, ScoreRow("b", 0.5, 0.5, 0.5, 0.5))
    pool.write_score(2, ScoreRow("c", 0.5, 0.5, 0.5, 0.5), fingerprint="0:0")  # read before the file changed
    assert pool.scored_images(1) == {"a", "b"}
    assert pool.scored_images(2) == set()
    found = pool.scores(1)[0]
    assert (found.image, found.entropy, found.variance, found.details) == ("a", 0.1, 0.4, {"volume": [1, 2]})
    assert found.features is not None and np.array_equal(found.features, features)
    assert pool.scores(1)[1].features is None


def test_a_changed_file_drops_what_was_made_of_the_old_one(pool: Pool) -> None:
    pool.write_score(1, ScoreRow("a", 0.1, 0.2, 0.3, 0.4))
    pool.write_codes({"a": np.zeros((2, 2), np.uint8), "b": np.ones(3, np.uint8)})
    pool.write_mutual_information([("a", "b", 0.5), ("b", "a", 0.5), ("b", "c", 0.25)])
    pool.mark_unusable("a", "truncated")
    rank(pool, 1, "ab")
    assert pool.codes("abc").keys() == {"a", "b"}
    pool.content_changed("a")
    assert pool.scored_images(1) == set()
    assert {image: codes.tolist() for image, codes in pool.codes("abc").items()} == {"b": [1, 1, 1]}
    assert pool.missing_pairs("abd", "bc").tolist() == [[True, True], [False, False], [True, True]]
    assert pool.overview.image_state("a")["unusable"] is None
    assert [row.image for row in pool.ranking()] == ["b"]


def test_other_settings_drop_all_that_was_made_with_the_old_ones(pool: Pool) -> None:
    pool.made_with("grid 32")
    pool.write_codes({"a": np.zeros(8, np.uint8)})
    pool.made_with("grid 32")
    assert pool.codes("a")
    pool.made_with("grid 16")
    assert not pool.codes("a")


def test_a_new_ranking_drops_older_scores_only(pool: Pool) -> None:
    for version in (1, 2):
        pool.write_score(version, ScoreRow("a", 0.1, 0.2, 0.3, 0.4))
    rank(pool, 2, "a")
    assert (pool.scored_images(1), pool.scored_images(2)) == (set(), {"a"})


def test_what_is_out_is_not_open_and_a_lease_is_told(pool: Pool) -> None:
    pool.labels_found("ab")
    pool.flag("c", "motion")
    pool.mark_unusable("d", "empty")
    pool.next_image("anna")
    assert (pool.overview.labelled(), pool.overview.open()) == (2, 6)
    assert pool.overview.image_state("e")["leased_by"] == "anna"
    assert pool.overview.image_state("nowhere") == {}


def test_a_file_that_was_replaced_while_it_was_read_is_not_called_unusable(pool: Pool) -> None:
    read = pool.fingerprints()["a"]
    with pool.database.transaction() as connection:
        connection.execute("UPDATE images SET fingerprint = '2:2' WHERE image = 'a'")
    pool.mark_unusable("a", "the file is empty", fingerprint=read)
    assert pool.unusable() == {}
    pool.mark_unusable("a", "the file is empty", fingerprint="2:2")
    assert pool.unusable() == {"a": "the file is empty"}
