"""Suggestive Annotation: of the most uncertain images those that represent the unlabelled ones best."""

import numpy as np
from numpy.typing import NDArray

from svgd_label.acquisition.candidates import Candidates, Matrix, QueryStrategy, Vector, descending


def score(candidates: Candidates, _: Candidates) -> Vector:
    """The K most uncertain images in the order of the greedy maximum set cover, then the rest by entropy.

    As in the source K is twice the query (16 and 8 there) and an image is represented by the most similar one of the
    query, similarity being the cosine of the features. Uncertainty is the committee's entropy, as in the strategies
    that this one is compared with; the source takes the variance over bootstrapped networks.
    """
    by_entropy = np.argsort(-candidates.entropy, kind="stable")
    uncertain, rest = np.split(by_entropy, [2 * candidates.queries])
    norms = np.linalg.norm(candidates.features, axis=1, keepdims=True)
    unit = candidates.features / np.maximum(norms, np.finfo(np.float64).tiny)
    return descending([*uncertain[greedy_cover(unit[uncertain] @ unit.T)], *rest])


def greedy_cover(similarity: Matrix) -> NDArray[np.intp]:
    """Order of all rows, each the one that adds most to sum_x max_i similarity[i, x] over the rows i so far.

    Cosines begin at -1: the sum of 1 + max is monotone, submodular and 0 for no row, so that the first k rows reach
    1 - 1/e of the best k at least (Nemhauser 1978).

    Args:
        similarity: (K, N), -1 to 1; ties go to the smaller row.
    """
    covered = np.full(similarity.shape[1], -1.0)
    order: list[int] = []
    for _ in range(len(similarity)):
        gain = (np.maximum(similarity, covered) - covered).sum(axis=1)
        gain[order] = -np.inf
        order.append(int(np.argmax(gain)))
        covered = np.maximum(covered, similarity[order[-1]])
    return np.array(order, dtype=np.intp)


STRATEGIES = (
    QueryStrategy(
        "max_cover",
        "Suggestive Annotation, greedy maximum set cover; Yang et al., MICCAI 2017, arXiv:1706.04737",
        score,
        repeat=0.0,
    ),
)
