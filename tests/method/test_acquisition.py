"""Query strategies are the formulas they name; ties, constants, labelled images and noise follow the rules."""

import math
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare, gumbel_r, kstest

from svgd_label.acquisition import STRATEGIES, Candidates, StrategyError, gumbel_noise, rank, strategy
from svgd_label.acquisition.diverse import farthest_first
from svgd_label.acquisition.max_cover import greedy_cover

KEEPING = {"entropy_mi", "entropy", "expected_entropy", "jsd"}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcd"


def candidates(images: str, seed: int = 0, labelled: str = "", **known: object) -> Candidates:
    """One image a letter; what is not given is random, the noise that of ``seed`` and version 0."""
    rng = np.random.default_rng(seed)
    n = len(images)
    columns = {name: rng.random(n) for name in ("entropy", "expected_entropy", "jsd", "mutual_information")} | {
        "class_entropy": rng.random((n, 2)),
        "volumes": rng.random((n, 2)),
        "features": rng.normal(size=(n, 4)),
        "gumbel": gumbel_noise(images, 3, strategy="random", seed=seed, version=0),
    }
    given_columns = {name: np.array(known.pop(name), dtype=float) for name in columns if name in known}
    return Candidates(
        images=tuple(images),
        labelled=np.array([i in labelled for i in images], bool),
        **columns | given_columns,
        **known,
    )


def order(name: str, pool: Candidates) -> str:
    return "".join(image for image, _ in rank(strategy(name), pool))


def first_picks(name: str, picks: int, draws: int, **known: object) -> Counter[str]:
    """How often the first images of the ranking are these, over independent noise."""
    images = "abcdef"[: len(next(iter(known.values())))]
    noise = np.random.default_rng(1).gumbel(size=(draws, len(images), 3))
    return Counter(order(name, candidates(images, gumbel=each, **known))[:picks] for each in noise)


def agree(found: Counter[str], probabilities: dict[str, float]) -> bool:
    draws = sum(found.values())
    return chisquare([found[x] for x in probabilities], [draws * p for p in probabilities.values()]).pvalue > 0.001


# What all strategies share


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_ranking_holds_each_image_that_stays_once_with_finite_scores_and_does_not_depend_on_the_given_order(
    name: str,
) -> None:
    pool = candidates("abcdefgh", labelled="be", queries=3)
    ranking = rank(strategy(name), pool)
    assert {image for image, _ in ranking} == set("abcdefgh" if name in KEEPING else "acdfgh")
    assert len(ranking) == len({image for image, _ in ranking})
    scores = [score for _, score in ranking]
    assert np.isfinite(scores).all()
    assert scores == sorted(scores, reverse=True)
    assert rank(strategy(name), pool.select(np.array([3, 0, 7, 1, 6, 2, 5, 4]))) == ranking


@pytest.mark.parametrize("name", STRATEGIES)
def test_images_that_nothing_tells_apart_follow_by_id(name: str) -> None:
    n, constant = 5, np.ones(5)
    pool = candidates(
        "dbeca",
        **dict.fromkeys(("entropy", "expected_entropy", "jsd", "mutual_information"), constant),
        class_entropy=np.ones((n, 2)),
        volumes=np.ones((n, 2)),
        features=np.ones((n, 3)),
        gumbel=np.zeros((n, 3)),
    )
    assert order(name, pool) == "abcde"


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("labelled", ["", "a"])
def test_pools_of_no_image_of_one_and_without_any_sign_of_foreground_are_ranked(name: str, labelled: str) -> None:
    assert order(name, candidates("")) == ""
    assert order(name, candidates("a", labelled=labelled)) == ("" if labelled and name not in KEEPING else "a")
    zeros = {name: np.zeros(3) for name in ("entropy", "expected_entropy", "jsd", "mutual_information")}
    blank = candidates(
        "abc", **zeros, class_entropy=np.zeros((3, 2)), volumes=np.zeros((3, 2)), features=np.zeros((3, 0))
    )
    ranking = rank(strategy(name), blank)
    assert len(ranking) == 3
    assert np.isfinite([score for _, score in ranking]).all()


def test_labelled_images_stay_for_the_papers_rule_and_leave_for_the_others() -> None:
    pool = candidates("abc", labelled="a", entropy=[3.0, 1.0, 2.0], mutual_information=[0.0, 0.0, 0.0])
    assert order("entropy_mi", pool) == "acb"
    assert order("entropy_mi_delete", pool) == "cb"
    assert {name for name, entry in STRATEGIES.items() if entry.repeat} == KEEPING


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("column", ["entropy", "mutual_information", "class_entropy", "features"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_pool_with_a_value_that_is_not_finite_is_ranked(name: str, column: str, value: float) -> None:
    pool = candidates("abcd", labelled="d")
    getattr(pool, column)[1] = value
    with pytest.raises(ValueError, match=f"their {column} holds NaN"):
        rank(strategy(name), pool)


def test_an_unknown_name_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(StrategyError, match="entropy_mi"):
        strategy("nope")


# Single scores


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_entropy_mi_is_the_papers_score(alpha: float) -> None:
    pool = candidates("abcdef", alpha=alpha)
    h, mi = pool.entropy, pool.mutual_information
    expected = alpha * (h - h.min()) / (h.max() - h.min()) - (mi - mi.min()) / (mi.max() - mi.min()) / alpha
    assert dict(rank(strategy("entropy_mi"), pool)) == pytest.approx(dict(zip("abcdef", expected, strict=True)))


def test_entropy_mi_delete_takes_min_and_max_over_what_is_left() -> None:
    pool = candidates("abcd", labelled="d", entropy=[0, 1, 2, 9], mutual_information=[3, 1, 2, 0])
    assert dict(rank(strategy("entropy_mi_delete"), pool)) == pytest.approx({"a": -1.0, "b": 0.5, "c": 0.5})


def test_a_constant_term_counts_nothing_and_ties_break_by_id() -> None:
    pool = candidates("dbca", entropy=[1.0, 1.0, 1.0, 1.0], mutual_information=[0.2, 0.2, 0.1, 0.2])
    assert order("entropy_mi", pool) == "cabd"
    assert dict(rank(strategy("entropy_mi"), pool))["c"] == 0


@pytest.mark.parametrize(
    ("name", "column"), [("entropy", "entropy"), ("expected_entropy",) * 2, ("jsd", "jsd"), ("bald", "jsd")]
)
def test_single_terms(name: str, column: str) -> None:
    assert order(name, candidates("abcd", **{column: [0.3, 0.1, 0.4, 0.2]})) == "cadb"


# Noise


def test_the_noise_is_standard_gumbel_and_differs_by_strategy_seed_version_image_and_column() -> None:
    images = [f"image_{number}" for number in range(2000)]
    known = {"strategy": "random", "seed": 7, "version": 2}
    noise = gumbel_noise(images, 3, **known)
    assert kstest(noise.ravel(), gumbel_r.cdf).pvalue > 0.01
    assert abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.08
    for other in ({"seed": 8}, {"version": 3}, {"seed": 2, "version": 7}, {"strategy": "random_foreground"}):
        assert abs(np.corrcoef(noise[:, 0], gumbel_noise(images, 3, **known | other)[:, 0])[0, 1]) < 0.08
    some = [5, 1999, 0]
    assert np.array_equal(gumbel_noise([images[i] for i in some], 3, **known), noise[some])


@pytest.mark.parametrize("name", ["random", "random_foreground", "power_noise", "clasp_pe"])
def test_a_label_or_another_image_leaves_the_order_of_the_others_as_it_is(name: str) -> None:
    full = candidates("abcdefgh", seed=3)
    before = order(name, full)
    for image in "abcdefgh":
        labelled = replace(full, labelled=np.array([i == image for i in "abcdefgh"]))
        gone = full.select(np.array([row for row, i in enumerate("abcdefgh") if i != image]))
        assert order(name, labelled) == order(name, gone) == before.replace(image, "")


def test_random_is_any_order_alike() -> None:
    found = first_picks("random", 3, 1500, entropy=[1.0, 50.0, 2.0])
    assert agree(found, {"".join(p): 1 / 6 for p in permutations("abc")})


@pytest.mark.parametrize(
    ("name", "known", "weights"),
    [
        ("power_noise", {"jsd": [0.4, 0.1, 0.2, 0.8]}, (0.4, 0.1, 0.2, 0.8)),
        ("random_foreground", {"volumes": [[300, 100], [100, 0], [0, 200], [450, 350]]}, (4, 1, 2, 8)),
        ("clasp_pe", {"entropy": [0.4, 0.1, 0.2, 0.8], "progress": 0.0}, (0.4, 0.1, 0.2, 0.8)),
        ("clasp_pe", {"entropy": [1.0, 1.1, 0.9, 1.2], "progress": 0.5}, tuple(x**10 for x in (1.0, 1.1, 0.9, 1.2))),
    ],
)
def test_noised_scores_are_draws_without_replacement_in_proportion_to_a_power_of_the_score(
    name: str, known: dict[str, list[float]], weights: tuple[float, ...]
) -> None:
    p = {image: w / sum(weights) for image, w in zip("abcd", weights, strict=True)}
    expected = {i + j: p[i] * p[j] / (1 - p[i]) for i, j in permutations("abcd", 2)}
    assert agree(first_picks(name, 2, 2500, **known), expected)


def test_images_without_predicted_foreground_come_last() -> None:
    pool = candidates("abcdefgh", volumes=[[v, 0] for v in (0, 1, 0, 9000, 0, 1, 40, 0)])
    assert set(order("random_foreground", pool)[:4]) == set("bdfg")


# ClaSP PE


@settings(deadline=None)
@given(st.integers(1, 24), st.integers(1, 5))
def test_two_thirds_of_the_query_are_split_over_the_classes_and_the_rest_goes_by_entropy(
    queries: int, classes: int
) -> None:
    group = 24
    n = group * (classes + 1)  # images that one class each is unsure of, and as many unsure as a whole
    class_entropy = 0.01 + np.kron(np.eye(classes + 1)[:, :classes], np.ones((group, 1)))
    pool = replace(
        candidates("?" * n, entropy=np.repeat([1.0] * classes + [2.0], group), queries=queries),
        images=tuple(f"{number:03d}" for number in range(n)),
        class_entropy=class_entropy,
        gumbel=np.zeros((n, 1 + classes)),
    )
    picked = Counter(int(image) // group for image, _ in rank(strategy("clasp_pe"), pool)[:queries])
    share = math.floor(Fraction(2, 3) * queries / classes)
    assert [picked[c] for c in range(classes)] == [share] * classes
    assert picked[classes] == queries - classes * share


def test_a_class_passes_over_what_another_has_taken_and_noise_fades_to_one_hundredth() -> None:
    known = {
        "entropy": [5.0, 1.0, 2.0, 4.0, 3.0],
        "class_entropy": [[9.0, 9.0], [1.0, 8.0], [1.0, 7.0], [1.0, 1.0], [1.0, 1.0]],
        "queries": 3,
    }
    silent = np.zeros((5, 3))
    assert order("clasp_pe", candidates("abcde", gumbel=silent, **known)) == "abdec"
    second = silent + [[0], [0], [1], [0], [0]] * np.array([[0, 0, 1]])  # only the second class hears this noise
    assert order("clasp_pe", candidates("abcde", gumbel=second, progress=0.0, **known)) == "acdeb"
    assert order("clasp_pe", candidates("abcde", gumbel=second * 13.3, progress=1.0, **known)) == "abdec"
    assert order("clasp_pe", candidates("abcde", gumbel=second * 13.4, progress=1.0, **known)) == "acdeb"


# Diversity


def test_farthest_first_begins_in_the_middle_and_spreads() -> None:
    points = np.array([[0.0], [10.0], [5.2], [1.0], [9.0]])
    assert farthest_first(points) == [2, 0, 1, 3, 4]
    assert farthest_first(points, np.array([[9.5], [4.0]])) == [0, 2, 3, 1, 4]
    assert farthest_first(points, picks=1) == [2, 0, 1, 3, 4]
    assert farthest_first(points, np.array([[0.0]]), picks=1) == [1, 2, 3, 4, 0]
    assert farthest_first(np.zeros((3, 2))) == [0, 1, 2]
    assert farthest_first(np.zeros((0, 2))) == []


def test_coreset_picks_what_scikit_activeml_does() -> None:
    features = np.random.default_rng(0).normal(size=(30, 4))
    pool = candidates(LETTERS, labelled="DLU", features=features, queries=8)
    # skactiveml.pool.CoreSet(random_state=0).query(features, y, batch_size=8) of scikit-activeml 1.0.1, y known for
    # the rows 3, 11 and 20.
    assert [LETTERS.index(image) for image in order("coreset", pool)[:8]] == [22, 12, 17, 18, 13, 10, 29, 15]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_the_radius_of_coreset_is_at_most_twice_the_best(seed: int, queries: int) -> None:
    pool = candidates("abcdefgh", seed=seed, labelled="ae", queries=queries)
    distance = np.linalg.norm(pool.features[:, None] - pool.features, axis=2)

    def radius(picks: object) -> float:
        return float(distance[:, [0, 4, *picks]].min(axis=1).max())

    best = min(radius(subset) for subset in combinations([1, 2, 3, 5, 6, 7], queries))
    assert radius("abcdefgh".index(image) for image in order("coreset", pool)[:queries]) <= 2 * best + 1e-12


def test_max_cover_takes_one_of_each_kind_among_the_uncertain_only() -> None:
    east, north, west = [1.0, 0.1], [0.0, 3.0], [-5.0, 0.0]
    pool = candidates(
        "abcdefgh",
        entropy=[9, 8, 7, 6, 5, 4, 3, 2],
        features=[east, east, north, north, west, west, west, west],  # west is many, but sure
        queries=2,
    )
    assert set(order("max_cover", pool)[:2]) == set("ac")
    assert order("max_cover", pool)[4:] == "efgh"
    assert set(order("max_cover", replace(pool, queries=3))[:3]) == set("ace")
    assert order("max_cover", replace(pool, queries=1)) == "abcdefgh"
    like_the_sure = np.array([north, west, north, *[west] * 5])  # whom the two most uncertain ones stand for
    assert order("max_cover", replace(pool, queries=1, features=like_the_sure)) == "bacdefgh"


def test_the_greedy_cover_is_that_of_apricot() -> None:
    features = np.random.default_rng(0).normal(size=(30, 4))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    # apricot.FacilityLocationSelection(9, metric="precomputed").fit(1 + cosines).ranking of apricot-select 0.6.1
    expected = [21, 24, 0, 14, 17, 3, 9, 25, 22]
    assert greedy_cover(unit @ unit.T)[:9].tolist() == expected
    pool = candidates(LETTERS, features=3 * features, queries=15)
    assert [LETTERS.index(image) for image in order("max_cover", pool)[:9]] == expected


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_the_greedy_cover_reaches_its_bound_and_a_step_never_adds_more_than_the_one_before(seed: int, k: int) -> None:
    unit: NDArray[np.float64] = np.random.default_rng(seed).normal(size=(12, 3))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    similarity = unit[:7] @ unit.T

    def cover(picks: object) -> float:
        return float((1 + similarity[list(picks)]).max(axis=0).sum())

    picks = greedy_cover(similarity)
    best = max(cover(subset) for subset in combinations(range(7), k))
    assert cover(picks[:k]) >= (1 - 1 / math.e) * best
    gains = np.diff([0.0, *(cover(picks[:n]) for n in range(1, 8))])
    assert (gains >= -1e-12).all()
    assert (np.diff(gains) <= 1e-12).all()
