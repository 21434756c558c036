"""Mutual information equals scikit-learn's, and the labelled set's term follows its rules."""

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray
from sklearn.metrics import mutual_info_score

from svgd_label.similarity import codes, labelled_information, mutual_information, saturated

PAIRS = hnp.arrays(np.uint8, st.tuples(st.just(2), st.integers(1, 60)), elements=st.integers(0, 7))


def marginal_entropy(x: NDArray[np.uint8]) -> float:
    p = np.bincount(x.ravel()) / x.size
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


@given(PAIRS, st.randoms())
def test_it_is_scikit_learns_and_keeps_its_invariants(pair: NDArray[np.uint8], random: object) -> None:
    x, y = pair
    value = mutual_information(x, y, bins=8)
    assert value == pytest.approx(mutual_info_score(x, y), abs=1e-9)
    assert value == pytest.approx(mutual_information(y, x, bins=8), abs=1e-12)
    assert 0 <= value <= min(marginal_entropy(x), marginal_entropy(y)) + 1e-9
    assert mutual_information(x, x, bins=8) == pytest.approx(marginal_entropy(x), abs=1e-9)
    order = np.random.default_rng(len(x)).permutation(len(x))
    assert mutual_information(x[order], y[order], bins=8) == pytest.approx(value, abs=1e-9)


def test_volumes_in_the_unit_interval_with_strides() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 12, 10, 8))
    expected = mutual_info_score((x * 64).astype(int).ravel(), (y * 64).astype(int).ravel())
    assert mutual_information(x, y) == pytest.approx(expected, abs=1e-9)
    assert mutual_information(x[::2, :, ::-1], y[::2, :, ::-1]) == pytest.approx(
        mutual_info_score((x * 64).astype(int)[::2].ravel(), (y * 64).astype(int)[::2].ravel()), abs=1e-9
    )


def test_codes() -> None:
    assert codes([0.0, 0.49, 0.5, 1.0], bins=2).tolist() == [0, 0, 1, 1]
    assert codes(np.array([0, 63])).tolist() == [0, 63]


@pytest.mark.parametrize(
    ("x", "sentence"),
    [([0.5, np.nan], "NaN"), ([1.2], "lie in"), ([-0.1], "lie in"), (np.array([64]), "integer codes"), ([-1], "codes")],
)
def test_what_is_no_grey_value_is_refused(x: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        codes(x)  # type: ignore[arg-type]


def test_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="one size"):
        mutual_information(np.zeros((2, 2)), np.zeros((2, 3)))


def test_an_image_is_saturated_from_99_percent_of_one_code_on() -> None:
    values = np.zeros(1000, np.uint8)
    values[:11] = 1
    assert not saturated(values)
    values[10] = 0
    assert saturated(values)


def test_the_labelled_term() -> None:
    pairs = {("a", "b"): 1.0, ("a", "c"): 3.0, ("b", "c"): 2.0, ("c", "b"): 2.0}
    assert labelled_information("abc", "bc", pairs).tolist() == [2.0, 2.0, 2.0]
    assert labelled_information("abc", "bc", pairs, over="sum").tolist() == [4.0, 2.0, 2.0]
    assert labelled_information("abc", "bc", pairs, over="max").tolist() == [3.0, 2.0, 2.0]


def test_with_nobody_labelled_it_is_zero_and_alone_it_is_the_mean_of_the_others() -> None:
    assert labelled_information("ab", "", {}).tolist() == [0.0, 0.0]
    assert labelled_information("abc", "c", {("a", "c"): 1.0, ("b", "c"): 2.0}).tolist() == [1.0, 2.0, 1.5]
