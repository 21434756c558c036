"""Mutual information between images from joint grey-level histograms, and its mean over the labelled ones."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

BINS = 64


def codes(x: ArrayLike, *, bins: int = BINS) -> NDArray[np.uint8]:
    """Grey-level codes floor(x * bins), at most bins - 1; integer arrays are codes already.

    Args:
        x: any shape, real values in [0, 1], or integer codes in [0, bins).
        bins: number of grey levels, at most 256.

    Raises:
        ValueError: NaN, values out of range, or more than 256 bins.
    """
    values = np.asarray(x)
    if not 1 <= bins <= 256:
        raise ValueError(f"bins must be from 1 to 256, not {bins}")
    if np.issubdtype(values.dtype, np.integer):
        if values.size and (values.min() < 0 or values.max() >= bins):
            raise ValueError(f"integer codes must lie in [0, {bins}), not in [{values.min()}, {values.max()}]")
        return values.astype(np.uint8)
    if not (values.size == 0 or (values.min() >= 0 and values.max() <= 1)):  # NaN fails both comparisons
        raise ValueError("grey values must lie in [0, 1] and hold no NaN: normalise the image first")
    return np.minimum(values * bins, bins - 1).astype(np.uint8)


def mutual_information(x: ArrayLike, y: ArrayLike, *, bins: int = BINS) -> float:
    """Mutual information of two images in nats.

    MI = sum_{a,b} P(a, b) log( P(a, b) / (P(a) P(b)) ) over their joint grey-level histogram (Nath et al. 2020).
    The histogram's bias, about (bins - 1)^2 / (2 N) nats for N voxels, is the same for every pair of one size.

    Args:
        x, y: images of one size, in [0, 1] or integer codes.
        bins: grey levels.

    Raises:
        ValueError: two sizes, NaN, or values out of range.
    """
    a, b = codes(x, bins=bins).ravel(), codes(y, bins=bins).ravel()
    if a.size != b.size:
        raise ValueError(f"mutual information needs two images of one size, not {np.shape(x)} and {np.shape(y)}")
    if a.size == 0:
        raise ValueError("mutual information needs images with at least one voxel")
    joint = np.bincount(a.astype(np.int32) * bins + b, minlength=bins * bins).reshape(bins, bins) / a.size
    rows, columns = np.nonzero(joint)
    cells = joint[rows, columns]
    independent = joint.sum(axis=1)[rows] * joint.sum(axis=0)[columns]
    return float(max(0.0, np.sum(cells * np.log(cells / independent))))


def saturated(image_codes: NDArray[np.uint8], *, share: float = 0.99) -> bool:
    """Whether ``share`` or more of the voxels have one code: such an image has no mutual information to speak of."""
    return bool(np.bincount(image_codes.ravel()).max() >= share * image_codes.size)


def labelled_information(
    images: Sequence[str],
    labelled: Sequence[str],
    pairs: Mapping[tuple[str, str], float],
    *,
    over: str = "mean",
) -> NDArray[np.float64]:
    """Each image's mutual information with the labelled set T.

    An image's MI with itself never counts; one whose only labelled partner is itself takes the mean of the others';
    an empty T makes the term 0.

    Args:
        images: the pool.
        labelled: T, some of them.
        pairs: (image, partner) -> MI in nats, for every image and every partner in T that is not the image.
        over: ``mean``, ``sum`` or ``max`` over T.

    Returns:
        (len(images),) in nats.
    """
    combine: dict[str, Callable[[list[float]], float]] = {
        "mean": lambda partners: sum(partners) / len(partners),
        "sum": sum,
        "max": max,
    }
    values = np.array(
        [
            combine[over](partners) if (partners := [pairs[image, t] for t in labelled if t != image]) else np.nan
            for image in images
        ],
        dtype=np.float64,
    )
    known = values[~np.isnan(values)]
    values[np.isnan(values)] = known.mean() if known.size else 0.0
    return values
