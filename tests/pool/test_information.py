"""The labelled set's term follows its rules, and what is known of pairs is never asked for again."""

import contextlib
import itertools
import sqlite3
from collections.abc import Iterator

import numpy as np
import pytest

from svgd_label.pool import Database, Pool, ScoreRow
from svgd_label.pool.scores import ROWS_AT_ONCE


def test_the_labelled_term_is_mean_sum_or_max_without_the_image_itself(pool: Pool) -> None:
    rows = [("a", "b", 1.0), ("a", "c", 3.0), ("b", "c", 2.0), ("c", "b", 2.0), ("a", "d", 100.0), ("b", "b", 100.0)]
    pool.write_mutual_information(rows)
    assert pool.labelled_information("abc", "bc").tolist() == [2.0, 2.0, 2.0]
    assert pool.labelled_information("abc", "bc", over="sum").tolist() == [4.0, 2.0, 2.0]
    assert pool.labelled_information("abc", "bc", over="max").tolist() == [3.0, 2.0, 2.0]


def test_with_nobody_labelled_it_is_zero_and_alone_it_is_the_mean_of_the_others(pool: Pool) -> None:
    pool.write_mutual_information([("a", "c", 1.0), ("b", "c", 2.0), ("d", "c", 100.0)])
    assert pool.labelled_information("ab", "").tolist() == [0.0, 0.0]
    assert pool.labelled_information("c", "c").tolist() == [0.0]
    assert pool.labelled_information("abc", "c").tolist() == [1.0, 2.0, 1.5]


def test_the_order_of_the_images_is_the_callers(pool: Pool) -> None:
    pool.write_mutual_information([("a", "c", 1.0), ("b", "c", 2.0)])
    assert pool.labelled_information("ba", "c").tolist() == [2.0, 1.0]


def test_a_pair_of_two_labelled_images_is_asked_for_once_and_known_in_both_orders(pool: Pool) -> None:
    missing = pool.missing_pairs("abc", "ab")
    assert missing.tolist() == [[False, True], [False, False], [True, True]]
    pool.write_mutual_information([("a", "b", 0.5), ("c", "a", 1.0), ("c", "b", 2.0)])
    pool.mirror_mutual_information("ab", "ab")
    assert not pool.missing_pairs("abc", "ab").any()
    assert pool.labelled_information("abc", "ab").tolist() == [0.5, 0.5, 1.5]
    pool.mirror_mutual_information("c", "abc")  # c is labelled as well: all that was known of it counts for the others
    assert not pool.missing_pairs("abc", "abc").any()
    assert pool.labelled_information("abc", "abc").tolist() == [0.75, 1.25, 1.5]


def test_only_partners_that_some_image_was_not_compared_with_are_compared(pool: Pool) -> None:
    pool.write_mutual_information([("a", "b", 1.0), ("c", "b", 1.0), ("e", "b", 1.0), ("b", "a", 1.0)])
    assert pool.partners_to_compare("abc", "ab") == ["a"]  # c is missing; an image's pair with itself is not
    assert pool.partners_to_compare("abcd", "ab") == ["a", "b"]
    assert pool.partners_to_compare("abc", "") == []


def test_pairs_of_a_file_that_changed_while_they_were_computed_are_not_stored(pool: Pool) -> None:
    before = pool.fingerprints()
    with pool.database.transaction() as connection:
        connection.execute("UPDATE images SET fingerprint = '2:2' WHERE image = 'a'")
        connection.execute("UPDATE images SET present = 0 WHERE image = 'e'")
    pool.write_mutual_information([("a", "b", 1.0), ("c", "a", 1.0), ("c", "b", 1.0), ("e", "b", 1.0)], before)
    assert pool.missing_pairs("abce", "ab").tolist() == [[False, True], [False, False], [True, False], [True, True]]


def test_only_images_with_codes_of_their_present_file_are_coded(pool: Pool) -> None:
    pool.write_codes({"a": np.zeros(8, np.uint8), "b": np.zeros(8, np.uint8)}, {"b": "0:0"})
    assert pool.coded_images() == {"a"}


def test_features_are_those_of_one_version_and_of_the_images_asked_for(pool: Pool) -> None:
    for version, image, value in ((1, "b", 1.0), (1, "a", 2.0), (1, "c", 3.0), (2, "a", 4.0)):
        features = np.array([value, 0], np.float32)
        pool.write_score(version, ScoreRow(image, 0.5, 0.5, 0.1, 0.1, features=features))
    pool.write_score(1, ScoreRow("d", 0.5, 0.5, 0.1, 0.1))
    assert pool.features(1, "abdj").tolist() == [[2, 0], [1, 0]]
    assert pool.features(3, "abc").shape[0] == 0
    pool.content_changed("a")
    assert pool.features(1, "ab").tolist() == [[1, 0]]


def test_pairs_are_written_few_at_once_because_a_save_waits_for_it(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[int] = []
    transaction = Database.transaction

    @contextlib.contextmanager
    def counting(database: Database) -> Iterator[sqlite3.Connection]:
        with transaction(database) as connection:
            before = connection.total_changes
            yield connection
            changes.append(connection.total_changes - before)

    monkeypatch.setattr(Database, "transaction", counting)
    names = [f"image_{number:03}" for number in range(100)]
    pool.write_mutual_information((a, b, 1.0) for a, b in itertools.combinations(names, 2))
    pool.mirror_mutual_information(names, names)
    assert not pool.missing_pairs(names, names).any()
    assert sum(changes) == 100 * 99
    assert max(changes) <= ROWS_AT_ONCE
