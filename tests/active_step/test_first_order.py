"""What is proposed before anything is scored."""

from pathlib import Path

from svgd_label.active_step import write_first_order
from svgd_label.pool import Pool
from svgd_label.tasks import Task


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
