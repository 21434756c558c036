"""Query strategies are the formulas they name; ties, constants and labelled images follow the rules."""

import numpy as np
import pytest

from svgd_label.acquisition import STRATEGIES, Candidates, StrategyError, rank, strategy
from svgd_label.acquisition.diverse import farthest_first


def candidates(images: str, seed: int = 0, labelled: str = "", **columns: list[float]) -> Candidates:
    rng = np.random.default_rng(seed)
    names = ("entropy", "expected_entropy", "jsd", "mutual_information")
    values = {name: np.array(columns.get(name, rng.random(len(images)))) for name in names}
    return Candidates(
        images=tuple(images),
        labelled=np.array([i in labelled for i in images]),
        alpha=columns.get("alpha", [1.0])[0],
        **values,
    )


def order(name: str, pool: Candidates, seed: int = 0) -> str:
    return "".join(image for image, _ in rank(strategy(name), pool, np.random.default_rng(seed)))


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_entropy_mi_is_the_papers_score(alpha: float) -> None:
    pool = candidates("abcdef", alpha=[alpha])
    h, mi = pool.entropy, pool.mutual_information
    expected = alpha * (h - h.min()) / (h.max() - h.min()) - (mi - mi.min()) / (mi.max() - mi.min()) / alpha
    ranking = rank(strategy("entropy_mi"), pool, np.random.default_rng(0))
    assert dict(ranking) == pytest.approx(dict(zip("abcdef", expected, strict=True)))
    assert [score for _, score in ranking] == sorted(expected, reverse=True)


def test_a_constant_term_counts_nothing_and_ties_break_by_id() -> None:
    pool = candidates("dbca", entropy=[1.0, 1.0, 1.0, 1.0], mutual_information=[0.2, 0.2, 0.1, 0.2])
    assert order("entropy_mi", pool) == "cabd"
    assert dict(rank(strategy("entropy_mi"), pool, np.random.default_rng(0)))["c"] == 0


@pytest.mark.parametrize(
    ("name", "column"), [("entropy", "entropy"), ("expected_entropy",) * 2, ("jsd", "jsd"), ("bald", "jsd")]
)
def test_single_terms(name: str, column: str) -> None:
    assert order(name, candidates("abcd", **{column: [0.3, 0.1, 0.4, 0.2]})) == "cadb"


def test_labelled_images_stay_for_the_papers_rule_and_leave_for_the_others() -> None:
    pool = candidates("abc", labelled="a", entropy=[3.0, 1.0, 2.0], mutual_information=[0.0, 0.0, 0.0])
    assert order("entropy_mi", pool) == "acb"
    assert order("entropy_mi_delete", pool) == "cb"
    assert set(order("random", pool)) == set("bc")
    keeping = {name for name, entry in STRATEGIES.items() if entry.keeps_labelled}
    assert keeping == {"entropy_mi", "entropy", "expected_entropy", "jsd"}


def test_random_depends_on_the_seed_alone() -> None:
    pool, other = candidates("abcdefgh", seed=1), candidates("abcdefgh", seed=2)
    assert order("random", pool, seed=5) == order("random", other, seed=5)
    assert len({order("random", pool, seed=seed) for seed in range(5)}) > 1


def test_an_unknown_name_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(StrategyError, match="entropy_mi"):
        strategy("nope")


def test_an_empty_pool_has_an_empty_ranking() -> None:
    assert order("entropy_mi", candidates("")) == ""


def test_farthest_first_begins_in_the_middle_and_spreads() -> None:
    points = np.array([[0.0], [10.0], [5.2], [1.0], [9.0]])
    assert farthest_first(points) == [2, 0, 1, 3, 4]
    assert farthest_first(np.zeros((3, 2))) == [0, 1, 2]
    assert farthest_first(np.zeros((0, 2))) == []
