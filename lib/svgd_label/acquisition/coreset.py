"""Core-set: the images whose features are farthest from all that is labelled."""

from svgd_label.acquisition.candidates import Candidates, QueryStrategy, Vector, descending
from svgd_label.acquisition.diverse import farthest_first


def score(candidates: Candidates, labelled: Candidates) -> Vector:
    """Greedy k-centre with the labelled images as the first centres (Sener and Savarese 2018, algorithm 1).

    Distances are Euclidean between the features. After ``queries`` picks the rest follow by their distance.
    """
    return descending(farthest_first(candidates.features, labelled.features, picks=candidates.queries))


STRATEGIES = (
    QueryStrategy(
        "coreset",
        "k-centre greedy on features; Sener and Savarese, ICLR 2018, arXiv:1708.00489",
        score,
        repeat=0.0,
    ),
)
