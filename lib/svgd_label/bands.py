"""Bands of doubt: where the committee is unsure, and on which slice to look at it first."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from nibabel.affines import voxel_sizes
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray
from scipy.ndimage import center_of_mass
from torch import Tensor

BANDS = {"unsure": 1, "very unsure": 2}
"""Names and values in the map; 0 is where the committee is sure."""

_SECOND = (0.2, 0.4)  # probability of the second of two classes, for each band
_PLANES = {
    "S": ("axial", "feet"),
    "I": ("axial", "head"),
    "A": ("coronal", "back"),
    "P": ("coronal", "front"),
    "R": ("sagittal", "patient's left"),
    "L": ("sagittal", "patient's right"),
}


def thresholds() -> dict[str, float]:
    """From which entropy of the particle average on, in nats, a voxel belongs to each band.

    That of two classes at 0.8 and 0.2, as where one of five particles contradicts the others, and at 0.6 and 0.4, as
    where two of five do; log 2 is the toss of a coin. The number of classes is no part of it: doubt is nearly always
    between two of them.
    """
    return {name: -p * math.log(p) - (1 - p) * math.log(1 - p) for name, p in zip(BANDS, _SECOND, strict=True)}


def bands(entropy: Tensor) -> Tensor:
    """The band of every voxel, any shape, as integers, from the entropy of the particle average in nats.

    docs/method.md: "bands of doubt".
    """
    limits = torch.tensor(list(thresholds().values()), dtype=entropy.dtype, device=entropy.device)
    return torch.bucketize(entropy, limits, right=True)


@dataclass(frozen=True)
class Slice:
    """One slice of an image, on the image's own grid."""

    axis: int
    """0, 1 or 2: along which axis of the voxels it is counted."""
    index: int
    """From 0."""
    plane: str
    """axial, coronal or sagittal, or what is nearest to it."""
    words: str
    """The same for people, with what the slice sliders of viewers show."""
    position: tuple[float, float, float]
    """RAS millimetres of the middle of the doubt on it."""


def first_slice(found: NDArray[np.uint8], affine: NDArray[np.float64]) -> Slice | None:
    """The slice with the most doubt: the largest sum of bands; None where the committee is sure everywhere.

    Slices are counted along the axis with the longest voxels, across which an image was acquired; where voxels are
    equally long, along the one from feet to head.

    Args:
        found: (X, Y, Z), the bands on the image's own grid.
        affine: (4, 4), voxel to RAS millimetres.
    """
    codes, sides = aff2axcodes(affine), voxel_sizes(affine)
    longest = [axis for axis in range(3) if sides[axis] > 0.99 * sides.max()]
    axis = min(longest, key=lambda axis: "SIAPRL".index(codes[axis]))
    sums = found.sum(axis=tuple(other for other in range(3) if other != axis), dtype=np.int64)
    index = int(sums.argmax())
    if not sums[index]:
        return None
    plane, start = _PLANES[codes[axis]]
    centre = (np.array(found.shape) - 1) / 2
    centre[axis] = index
    world = next(number for number, pair in enumerate(("RL", "AP", "SI")) if codes[axis] in pair)
    millimetres = float((affine @ [*centre, 1])[world])
    middle = np.array(center_of_mass(np.take(found, [index], axis=axis)))
    middle[axis] = index
    right, front, up, _ = (float(value) for value in affine @ [*middle, 1])
    return Slice(
        axis=axis,
        index=index,
        plane=plane,
        words=(
            f"{plane} slice {index + 1} of {found.shape[axis]}, counted from the {start}; "
            f"in 3D Slicer at {'RAS'[world]} {millimetres:.1f} mm"
        ),
        position=(right, front, up),
    )
