"""What is shown of a study: counts, the table by SQL, a next image that nobody loses by looking, Dice by version."""

from collections.abc import Callable, Iterable

import numpy as np
import pytest
from tests.pool.conftest import Clock

from svgd_label.pool import PAGE, Column, Database, Pool, RankingRow


def names(pool: Pool, sort: Column = "rank", *, descending: bool = False) -> str:
    return "".join(row.image for row in pool.overview.rows(sort=sort, descending=descending))


@pytest.fixture
def ranked(pool: Pool) -> Pool:
    """c is best, then a, then b; the others are not ranked."""
    rows = [RankingRow("c", 0.9, 0.3, 0.2), RankingRow("a", 0.5, 0.1, 0.1), RankingRow("b", 0.1, 0.2, 0.3)]
    pool.replace_ranking(1, rows)
    return pool


def test_looking_at_the_next_image_takes_it_from_nobody(ranked: Pool, database: Database) -> None:
    seen = ranked.overview.next_image()
    assert seen == ranked.overview.next_image()
    assert database.connection.execute("SELECT COUNT(*) FROM leases").fetchone()[0] == 0
    assert seen == ranked.next_image("ann")
    following = ranked.overview.next_image()
    assert following is not None
    assert following.image == "a", "c is with ann now"


def test_there_is_no_next_image_where_all_are_held_or_labelled(pool: Pool) -> None:
    for image in "abcdefgh":
        pool.label_saved(image)
    pool.next_image("ann")
    pool.flag("j", "motion")
    assert pool.overview.next_image() is None


def test_a_status_says_who_has_it_or_what_is_wrong(pool: Pool, clock: Clock) -> None:
    pool.label_saved("b")
    pool.flag("c", "motion")
    pool.mark_unusable("d", "holds NaN")
    pool.touch("e", "ann")
    found = {row.image: (row.status, row.why) for row in pool.overview.rows()}
    assert found["a"] == ("unlabelled", None)
    assert found["b"] == ("labelled", None)
    assert found["c"] == ("flagged", "motion")
    assert found["d"] == ("unscorable", "holds NaN")
    assert found["e"] == ("leased", "ann")
    assert pool.overview.counts() == {
        "unlabelled": 6, "leased": 1, "labelled": 1, "validation": 0, "flagged": 1, "unscorable": 1,
    }  # fmt: skip
    clock.wait(3601)
    assert pool.overview.row("e").status == "unlabelled", "the lease has ended"
    with pytest.raises(KeyError):
        pool.overview.row("nobody")


def test_validation_is_a_status_of_its_own(database: Database, add_images: Callable[[Iterable[str]], None]) -> None:
    pool = Pool(database, validation="fifth", max_frequency=3)
    add_images("abcde")
    pool.labels_found("abcde")
    assert [row.status for row in pool.overview.rows(status="validation")] == ["validation"]
    assert pool.overview.counts()["labelled"] == 4


def test_the_table_is_sorted_by_any_column_and_what_has_no_value_stands_last(ranked: Pool) -> None:
    assert names(ranked) == "cabdefghij"
    assert names(ranked, descending=True) == "bacdefghij"
    assert names(ranked, "entropy", descending=True) == "cbadefghij"
    assert names(ranked, "mutual_information") == "acbdefghij"
    assert names(ranked, "score") == "bacdefghij"
    assert names(ranked, "image", descending=True) == "jihgfedcba"
    ranked.label_saved("j")
    assert names(ranked, "frequency", descending=True) == "jabcdefghi"
    assert names(ranked, "status") == "jabcdefghi"


def test_the_table_is_searched_by_plain_text_and_paged(pool: Pool, add_images: Callable[[Iterable[str]], None]) -> None:
    add_images(["50%_done", "x' OR 1=1 --", *(f"scan {n:03}" for n in range(2 * PAGE + 1))])
    assert [row.image for row in pool.overview.rows(search="%")] == ["50%_done"]
    assert [row.image for row in pool.overview.rows(search="' or")] == ["x' OR 1=1 --"]
    pages = [pool.overview.rows(sort="image", search="SCAN", page=page) for page in (1, 2, 3, 4)]
    assert [len(page) for page in pages] == [PAGE, PAGE, 1, 0]
    assert len({row.image for page in pages for row in page}) == 2 * PAGE + 1
    assert sum(pool.overview.counts("scan").values()) == 2 * PAGE + 1


def test_shares_say_how_many_ranked_images_have_less(ranked: Pool) -> None:
    proposal = ranked.overview.next_image()
    assert proposal is not None
    np.testing.assert_allclose(ranked.overview.shares_below(proposal), (2 / 3, 1 / 3))


def test_dice_is_gathered_by_the_version_that_proposed(pool: Pool, database: Database) -> None:
    with database.transaction() as connection:
        connection.executemany(
            "INSERT INTO label_versions VALUES (?, ?, ?, 'f', 0, NULL, ?, ?)",
            [
                ("a", 1, "final", 1, 0.5),
                ("b", 1, "final", 1, 0.7),
                ("c", 1, "final", 2, 0.8),
                ("d", 1, "final", 2, None),
                ("e", 1, "review", 2, 0.1),
                ("f", 1, "final", None, 0.2),
                ("a", 2, "final", 2, 0.99),  # which it may have been trained on since
            ],
        )
    found = pool.overview.proposed_dice()
    assert found.keys() == {1, 2}
    assert (found[1].labels, found[1].lowest, found[1].highest) == (2, 0.5, 0.7)
    assert found[1].mean == pytest.approx(0.6)
    assert found[2].mean == 0.8
