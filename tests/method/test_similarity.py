"""Mutual information equals scikit-learn's, for one pair and for many, on the CPU and as scatter-add."""

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from numpy.typing import NDArray
from sklearn.metrics import mutual_info_score

from svgd_label.similarity import codes, mutual_information, mutual_information_matrix, saturated

PAIRS = hnp.arrays(np.uint8, st.tuples(st.just(2), st.integers(1, 60)), elements=st.integers(0, 7))


def marginal_entropy(x: NDArray[np.uint8]) -> float:
    p = np.bincount(x.ravel()) / x.size
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


@given(PAIRS, st.randoms())
@settings(deadline=None)  # the first call compiles
def test_it_is_scikit_learns_and_keeps_its_invariants(pair: NDArray[np.uint8], random: object) -> None:
    x, y = pair
    value = mutual_information(x, y, bins=8)
    assert value == pytest.approx(mutual_info_score(x, y), abs=1e-9)
    assert value == pytest.approx(mutual_information(y, x, bins=8), abs=1e-12)
    assert 0 <= value <= min(marginal_entropy(x), marginal_entropy(y)) + 1e-9
    assert mutual_information(x, x, bins=8) == pytest.approx(marginal_entropy(x), abs=1e-9)
    order = np.random.default_rng(len(x)).permutation(len(x))
    assert mutual_information(x[order], y[order], bins=8) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("voxels", [1, 3, 4, 5, 2047, 2048, 2049, 2051, 20_000, 100_003])
@pytest.mark.parametrize("bins", [2, 64, 100, 256])
def test_any_number_of_voxels_and_bins_frequent_codes_and_rare_ones(voxels: int, bins: int) -> None:
    rng = np.random.default_rng(voxels)
    x = np.where(rng.random(voxels) < 0.4, bins - 1, rng.integers(0, bins, voxels)).astype(np.uint8)
    y = np.where(rng.random(voxels) < 0.5, x, rng.integers(0, bins, voxels)).astype(np.uint8)
    assert mutual_information(x, y, bins=bins) == pytest.approx(mutual_info_score(x, y), abs=1e-9)


def test_volumes_in_the_unit_interval_with_strides() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 12, 10, 8))
    expected = mutual_info_score((x * 64).astype(int).ravel(), (y * 64).astype(int).ravel())
    assert mutual_information(x, y) == pytest.approx(expected, abs=1e-9)
    assert mutual_information(x[::2, :, ::-1], y[::2, :, ::-1]) == pytest.approx(
        mutual_info_score((x * 64).astype(int)[::2].ravel(), (y * 64).astype(int)[::2].ravel()), abs=1e-9
    )
    assert mutual_information(np.asfortranarray(x), y.T.copy().T) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
@pytest.mark.parametrize("bins", [2, 64, 256])
def test_many_with_many_is_pair_by_pair_and_only_what_is_wanted(device: torch.device | None, bins: int) -> None:
    rng = np.random.default_rng(0)
    images, partners = rng.random((5, 4, 5, 6)), rng.random((3, 4, 5, 6))
    expected = [[mutual_info_score(*(codes(z, bins=bins).ravel() for z in (x, y))) for y in partners] for x in images]
    found = mutual_information_matrix(images, partners, bins=bins, device=device)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    wanted = rng.random((5, 3)) < 0.5
    some = mutual_information_matrix(images, list(partners), bins=bins, wanted=wanted, device=device)
    np.testing.assert_array_equal(np.isnan(some), ~wanted)
    np.testing.assert_allclose(some[wanted], found[wanted], atol=1e-12)


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_more_pairs_than_are_counted_in_one_block(device: torch.device | None) -> None:
    volumes = np.random.default_rng(0).integers(0, 4, (50, 3000), dtype=np.uint8)
    volumes[7] = 3
    found = mutual_information_matrix(volumes, volumes[:30], bins=64, device=device)
    for i, j in [(0, 0), (49, 29), (20, 3), (33, 7)]:
        assert found[i, j] == pytest.approx(mutual_info_score(volumes[i], volumes[j]), abs=1e-9)
    assert not np.isnan(found).any()
    assert found.min() >= 0


@pytest.mark.parametrize("shape", [(2, 3), (3,), (1, 2), (3, 1)])
def test_wanted_of_another_shape_than_the_matrix_is_refused(shape: tuple[int, ...]) -> None:
    images = np.zeros((3, 4))
    with pytest.raises(ValueError, match="wanted must have"):
        mutual_information_matrix(images, images[:2], wanted=np.ones(shape, np.bool_))


def test_nobody_with_nobody_is_an_empty_matrix() -> None:
    assert mutual_information_matrix([], [np.zeros(3)]).shape == (0, 1)
    assert mutual_information_matrix([np.zeros(3)], []).shape == (1, 0)


def test_codes() -> None:
    assert codes([0.0, 0.49, 0.5, 1.0], bins=2).tolist() == [0, 0, 1, 1]
    assert codes(np.array([0, 63])).tolist() == [0, 63]
    assert codes(np.array([0.0, 1.0], np.float32), bins=256).tolist() == [0, 255]
    assert codes(0.5) == 32
    given = np.array([0.25, 1.0])
    codes(given)
    assert given.tolist() == [0.25, 1.0]


@pytest.mark.parametrize(
    ("x", "sentence"),
    [([0.5, np.nan], "NaN"), ([1.2], "lie in"), ([-0.1], "lie in"), (np.array([64]), "integer codes"), ([-1], "codes")],
)
def test_what_is_no_grey_value_is_refused(x: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        codes(x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=sentence):
        mutual_information(x, x)  # type: ignore[arg-type]


def test_two_sizes_and_images_without_voxels_are_refused() -> None:
    with pytest.raises(ValueError, match="one size"):
        mutual_information(np.zeros((2, 2)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="one size"):
        mutual_information_matrix([np.zeros(4), np.zeros(5)], [np.zeros(4)])
    with pytest.raises(ValueError, match="one size"):
        mutual_information(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="at least one voxel"):
        mutual_information(np.zeros(0), np.zeros(0))


def test_an_image_is_saturated_from_99_percent_of_one_code_on() -> None:
    values = np.zeros(1000, np.uint8)
    values[:11] = 1
    assert not saturated(values)
    values[10] = 0
    assert saturated(values)
    with pytest.raises(ValueError, match="without voxels"):
        saturated(values[:0])
