"""Whether an image looks unlike all that is labelled: then a proposal may be wrong where the committee is sure."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

ENOUGH = 10
"""With n labelled images, an image of their kind is called unlike them with a chance of about 1/(n + 1)."""


@dataclass(frozen=True)
class Likeness:
    """How far an image is from the labelled ones, in the committee's features."""

    labelled: int
    """With how many it was compared."""
    distance: float
    """To the nearest of them."""
    limit: float
    """From where on an image is called unlike."""

    @property
    def unlike(self) -> bool:
        """Whether the image looks unlike all that is labelled."""
        return self.distance > self.limit


def likeness(features: NDArray[np.float32], labelled: NDArray[np.float32]) -> Likeness | None:
    """Compares an image with the labelled ones.

    It is unlike them where it is farther from the nearest than any labelled image is from its own nearest: conformal
    anomaly detection (Laxhammar and Falkman 2015, doi:10.1007/s10472-013-9381-7) by the Euclidean distance to the
    nearest neighbour, as in the strategy ``coreset``.
    docs/method.md: "unlike the labelled".

    Args:
        features: (F,) of the image, the particles' mean bottleneck.
        labelled: (N, F), the same committee's.

    Returns:
        None where fewer than ten images are labelled.
    """
    if len(labelled) < ENOUGH:
        return None
    apart = cdist(labelled, labelled)
    np.fill_diagonal(apart, np.inf)
    return Likeness(
        labelled=len(labelled),
        distance=float(np.linalg.norm(labelled - features, axis=1).min()),
        limit=float(apart.min(axis=1).max()),
    )
