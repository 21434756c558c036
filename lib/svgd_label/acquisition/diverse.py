"""Farthest first: the order before anything is scored, and the greedy k-centre of the core-set strategy."""

import numpy as np
from numpy.typing import NDArray


def farthest_first(
    features: NDArray[np.float64], centres: NDArray[np.float64] | None = None, *, picks: int | None = None
) -> list[int]:
    """Greedy k-centre order (Gonzalez 1985): always the row farthest from all centres and all rows before it.

    Args:
        features: (N, F), one row an image.
        centres: (T, F); without any, the most central row comes first.
        picks: so many rows are chosen one after the other, the rest follow by their distance from what is chosen;
            None for all.

    Returns:
        A permutation of range(N); ties go to the smaller index.
    """
    order: list[int] = []
    distance = np.full(len(features), np.inf)
    for centre in () if centres is None else centres:
        distance = np.minimum(distance, np.linalg.norm(features - centre, axis=1))
    for pick in range(len(features) if picks is None else min(picks, len(features))):
        if pick == 0 and np.isinf(distance[0]):
            chosen = int(np.argmin(np.linalg.norm(features - features.mean(axis=0), axis=1)))
        else:
            chosen = int(np.argmax(distance))
        order.append(chosen)
        distance = np.minimum(distance, np.linalg.norm(features - features[chosen], axis=1))
        distance[chosen] = -1.0
    return order + [int(row) for row in np.argsort(-distance, kind="stable") if distance[row] >= 0]
