"""Who gets which image: order, leases, the ten-second rule, skips."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from svgd_label.pool import Database, Pool, RankingRow

HOUR = 3600.0


def ask(pool: Pool, client: str = "anna") -> str | None:
    proposal = pool.next_image(client)
    return None if proposal is None else proposal.image


def rank(pool: Pool, version: int, images: str) -> None:
    pool.replace_ranking(version, [RankingRow(image, 1.0, 0.5, 0.25) for image in images])


def test_queue_then_ranking_then_first_order_then_id(pool: Pool) -> None:
    rank(pool, 4, "hgf")
    pool.acquire(4, "entropy_mi", 2)
    rank(pool, 4, "fgh")
    pool.write_first_order("ea")
    proposals = [pool.next_image(f"client {i}") for i in range(10)]
    assert [p.image for p in proposals if p] == list("hgfeabcdij")
    assert [p.source for p in proposals if p] == ["queue"] * 2 + ["ranking"] + ["first"] * 7
    queued, ranked, first = proposals[0], proposals[2], proposals[3]
    assert queued is not None and ranked is not None and first is not None
    assert (queued.queue_position, queued.rank, queued.model_version) == (1, 3, 4)
    assert (ranked.rank, ranked.score, ranked.entropy, ranked.mutual_information) == (1, 1.0, 0.5, 0.25)
    assert (first.rank, first.score, first.model_version) == (None, None, None)
    assert "strategy entropy_mi with model version 4" in queued.why
    assert "model version 4, rank 1 (score 1, entropy 0.5" in ranked.why
    assert "unlike each other" in first.why
    assert pool.next_image("one too many") is None


def test_asked_again_within_ten_seconds_it_is_the_same(pool: Pool, clock: Any) -> None:
    assert ask(pool) == "a"
    clock.wait(9.9)
    assert ask(pool) == "a"
    clock.wait(0.2)  # ten seconds after the proposal, however often it was asked for
    assert ask(pool) == "b"


def test_a_clock_that_is_put_back_holds_nobody_up(pool: Pool, clock: Any) -> None:
    assert ask(pool, "anna") == "a"
    assert ask(pool, "ben") == "b"
    clock.wait(-24 * HOUR)
    assert ask(pool, "anna") == "b"  # skipped the first; the other's lease, of tomorrow, has ended
    assert pool.overview.row("b").why == "anna"
    assert pool.overview.image_state("a")["leased_by"] is None
    assert pool.touch("a", "cleo")


def test_a_clock_that_is_put_back_a_little_takes_an_image_from_nobody(pool: Pool, clock: Any) -> None:
    assert ask(pool, "anna") == "a"
    clock.wait(-0.5)
    assert ask(pool, "anna") == "a"
    assert ask(pool, "ben") == "b"
    clock.wait(-60)
    assert not pool.touch("a", "ben")


def test_two_clients_never_hold_one_image(pool: Pool, clock: Any) -> None:
    assert [ask(pool, "anna"), ask(pool, "ben"), ask(pool, "anna"), ask(pool, "ben")] == ["a", "b", "a", "b"]
    clock.wait(11)
    assert ask(pool, "anna") == "c"
    assert ask(pool, "ben") == "a"  # anna gave it up


def test_a_lease_ends_an_hour_after_the_last_request(pool: Pool, clock: Any) -> None:
    assert ask(pool, "anna") == "a"
    clock.wait(0.9 * HOUR)
    assert pool.touch("a", "anna")
    clock.wait(0.9 * HOUR)
    assert ask(pool, "ben") == "b"
    assert not pool.touch("a", "ben")
    clock.wait(0.2 * HOUR)
    assert ask(pool, "cleo") == "a"
    assert not pool.touch("a", "anna")


def test_a_save_ends_the_lease_without_a_skip(pool: Pool) -> None:
    assert ask(pool) == "a"
    pool.label_saved("a")
    assert pool.overview.image_state("a")["leased_by"] is None
    assert ask(pool) == "b"
    pool.label_removed("a")
    assert ask(pool, "ben") == "a"


def test_skipped_images_come_back_oldest_first_when_nothing_else_is_left(pool: Pool, clock: Any) -> None:
    pool.labels_found("defghij")
    asked = []
    for _ in range(7):
        asked.append(ask(pool))
        clock.wait(11)
    assert asked == list("abcabca")


def test_a_skip_lasts_a_day_and_is_the_clients_own(pool: Pool, clock: Any) -> None:
    assert ask(pool, "anna") == "a"
    clock.wait(11)
    assert ask(pool, "anna") == "b"
    assert ask(pool, "ben") == "a"
    pool.release("a")
    pool.label_saved("b")
    clock.wait(23 * HOUR)
    assert ask(pool, "anna") == "c"
    pool.label_saved("c")
    clock.wait(HOUR)
    assert ask(pool, "anna") == "a"


def test_working_on_a_skipped_image_undoes_the_skip(pool: Pool, clock: Any) -> None:
    ask(pool)
    clock.wait(11)
    assert ask(pool) == "b"
    assert pool.touch("a", "anna")
    assert ask(pool, "ben") == "c"
    pool.release("a")
    pool.label_saved("b")
    assert ask(pool) == "a"


@pytest.mark.parametrize("close", ["label_saved", "mark_unusable", "flag"])
def test_what_is_closed_is_not_proposed_again(pool: Pool, close: str) -> None:
    assert ask(pool) == "a"
    getattr(pool, close)(*(("a",) if close == "label_saved" else ("a", "motion")))
    assert ask(pool) == "b"
    assert ask(pool, "ben") == "c"


def test_a_flag_undone_brings_the_image_back(pool: Pool) -> None:
    pool.flag("a", "motion")
    assert ask(pool) == "b"
    pool.flag("a", None)
    assert ask(pool, "ben") == "a"


def test_an_image_whose_file_is_gone_is_not_proposed(pool: Pool, database: Database) -> None:
    with database.transaction() as connection:
        connection.execute("UPDATE images SET present = 0 WHERE image = 'a'")
    assert ask(pool) == "b"


def test_no_stage_walks_over_labelled_images(
    database: Database, add_images: Callable[[Iterable[str]], None], clock: Any
) -> None:
    """The work is counted in SQLite's own steps: with 100 times as many images, all labelled, it stays the same."""

    def steps(client: str) -> int:
        count = 0

        def tick() -> None:
            nonlocal count
            count += 1

        database.connection.set_progress_handler(tick, 1)
        assert ask(pool, client) is not None
        database.connection.set_progress_handler(None, 0)
        return count

    pool = Pool(database, validation="none", max_frequency=3, clock=clock)
    images = [f"{i:05}" for i in range(3000)]
    add_images(images[-30:])
    pool.replace_ranking(0, [RankingRow(image) for image in images[-30:]])
    few = steps("anna")
    add_images(images[:-30])
    pool.labels_found(images[:-30])
    pool.replace_ranking(1, [RankingRow(image) for image in images])
    pool.acquire(1, "random", 5, repeat=0.0)
    pool.labels_found(pool.queue())
    assert steps("ben") < 2 * few


def test_random_proposes_every_open_image_and_never_what_is_out_or_held(pool: Pool) -> None:
    pool.flag("a", "motion")
    pool.mark_unusable("b", "b.nii.gz: the file is empty")
    pool.label_saved("c")
    seen = set()
    for client in "1234567":
        proposal = pool.random_image(client)
        assert proposal is not None
        assert proposal.source == "random"
        seen.add(proposal.image)
    assert seen == set("defghij")
    assert pool.random_image("8") is None
