"""The order before anything is scored: farthest first, so that the first labels differ as much as they can."""

import numpy as np
from numpy.typing import NDArray


def farthest_first(features: NDArray[np.float64]) -> list[int]:
    """Greedy k-centre order (Gonzalez 1985): the most central row, then always the one farthest from all before it.

    Args:
        features: (N, F), one row an image.

    Returns:
        A permutation of range(N); ties go to the smaller index.
    """
    if len(features) == 0:
        return []
    first = int(np.argmin(np.linalg.norm(features - features.mean(axis=0), axis=1)))
    order = [first]
    distance = np.linalg.norm(features - features[first], axis=1)
    distance[first] = -1.0
    for _ in range(len(features) - 1):
        chosen = int(np.argmax(distance))
        order.append(chosen)
        distance = np.minimum(distance, np.linalg.norm(features - features[chosen], axis=1))
        distance[order] = -1.0
    return order
