"""Whether an image looks unlike all that is labelled: then a proposal may be wrong where the committee is sure."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

ENOUGH = 5
"""Fewer labelled images say nothing of how far apart images of their kind lie."""
FACTOR = 1.5


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

    It is unlike them where it is farther from the nearest than 1.5 times the distance that the loneliest labelled image
    has from its own nearest; Euclidean distances, as in the strategy ``coreset``.
    docs/method.md: "unlike the labelled".

    Args:
        features: (F,) of the image, the particles' mean bottleneck.
        labelled: (N, F), the same committee's.

    Returns:
        None where fewer than five images are labelled.
    """
    if len(labelled) < ENOUGH:
        return None
    apart = cdist(labelled, labelled)
    np.fill_diagonal(apart, np.inf)
    return Likeness(
        labelled=len(labelled),
        distance=float(np.linalg.norm(labelled - features, axis=1).min()),
        limit=FACTOR * float(apart.min(axis=1).max()),
    )
