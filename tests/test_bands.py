"""Bands of doubt begin where their closed cases say, and the slice to look at first is named as viewers name it."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from svgd_label.bands import BANDS, bands, first_slice, thresholds
from svgd_label.uncertainty import entropy


@pytest.mark.parametrize(("contradict", "band"), [(1, "unsure"), (2, "very unsure")])
def test_a_band_begins_where_so_many_of_five_certain_particles_contradict_the_others(
    contradict: int, band: str
) -> None:
    particles = torch.zeros(5, 3, dtype=torch.float64)
    particles[:contradict, 2] = 1
    particles[contradict:, 0] = 1
    assert float(entropy(particles.mean(dim=0), dim=0)) == pytest.approx(thresholds()[band])


@pytest.mark.parametrize(
    ("probabilities", "band"),
    [
        ([1.0, 0.0, 0.0], 0),
        ([0.81, 0.19, 0.0], 0),
        ([0.0, 0.21, 0.79], 1),
        ([0.61, 0.39, 0.0], 1),
        ([0.41, 0.0, 0.59], 2),
        ([0.5, 0.25, 0.25], 2),
    ],
)
def test_doubt_between_two_classes_and_among_three(probabilities: list[float], band: int) -> None:
    assert bands(entropy(torch.tensor(probabilities), dim=0)) == band


def doubt(shape: tuple[int, int, int], **at: int) -> NDArray[np.uint8]:
    """A single very doubtful voxel, and two doubtful ones one slice further along each axis."""
    found = np.zeros(shape, np.uint8)
    found[at["x"], at["y"], at["z"]] = BANDS["very unsure"]
    found[at["x"] + 1, at["y"] + 1, at["z"] + 1] = BANDS["unsure"]
    return found


def turned(codes: str, sides: tuple[float, float, float]) -> NDArray[np.float64]:
    """The affine of an image with these axes and voxel sides, its first voxel at (10, 20, 30) mm."""
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    for axis, (code, side) in enumerate(zip(codes, sides, strict=True)):
        affine["RLAPSI".index(code) // 2, axis] = side if code in "RAS" else -side
    affine[:3, 3] = (10, 20, 30)
    return affine


@pytest.mark.parametrize(
    ("codes", "sides", "axis", "index", "words"),
    [
        ("RAS", (1, 1, 1), 2, 5, "axial slice 6 of 9, counted from the feet; in 3D Slicer at S 35.0 mm"),
        ("LPI", (1, 1, 3), 2, 5, "axial slice 6 of 9, counted from the head; in 3D Slicer at S 15.0 mm"),
        ("SRA", (1, 1, 1), 0, 3, "axial slice 4 of 7, counted from the feet; in 3D Slicer at S 33.0 mm"),
        ("LAS", (1, 2, 1), 1, 4, "coronal slice 5 of 8, counted from the back; in 3D Slicer at A 28.0 mm"),
        ("PIL", (1, 1, 4), 2, 5, "sagittal slice 6 of 9, counted from the patient's right; in 3D Slicer at R -10.0 mm"),
    ],
)
def test_the_slice_with_most_doubt_is_counted_across_the_longest_voxels(
    codes: str, sides: tuple[float, float, float], axis: int, index: int, words: str
) -> None:
    affine = turned(codes, sides)
    found = first_slice(doubt((7, 8, 9), x=3, y=4, z=5), affine)
    assert found is not None
    assert (found.axis, found.index, found.words) == (axis, index, words)
    np.testing.assert_allclose(found.position, (affine @ [3, 4, 5, 1])[:3])


def test_many_doubtful_voxels_outweigh_a_few_very_doubtful_ones() -> None:
    found = np.zeros((4, 4, 4), np.uint8)
    found[:, 0, 1] = BANDS["unsure"]
    found[0, 0, 3] = BANDS["very unsure"]
    first = first_slice(found, np.eye(4))
    assert first is not None
    assert first.index == 1


def test_without_doubt_there_is_no_slice_to_look_at() -> None:
    assert first_slice(np.zeros((3, 3, 3), np.uint8), np.eye(4)) is None
