"""ClaSP PE for whole volumes: a share of the query for each structure, and noise that fades over the steps."""

import numpy as np

from svgd_label.acquisition.candidates import Candidates, QueryStrategy, Vector, descending, log


def score(candidates: Candidates, _: Candidates) -> Vector:
    """The query of Lüth et al. 2026, adapted to volumes, then the rest by noised entropy.

    Two thirds of the query are split evenly over the foreground classes, rounded down for each; a class takes those of
    greatest log(p_class-weighted entropy) + Gumbel / beta that no class before it has taken. What is left goes by
    log(entropy) + Gumbel / beta. beta = 100 ** progress: from 1 to 100 over the planned steps.
    """
    beta = 100.0**candidates.progress
    by_entropy, *by_class = np.argsort(
        -(log(np.column_stack([candidates.entropy, candidates.class_entropy])) + candidates.gumbel / beta),
        axis=0,
        kind="stable",
    ).T
    share = 2 * candidates.queries // (3 * len(by_class))
    order: dict[int, None] = {}  # an ordered set
    for preferred in by_class:
        order |= dict.fromkeys([row for row in preferred if row not in order][:share])
    return descending([*order, *(row for row in by_entropy if row not in order)])


STRATEGIES = (
    QueryStrategy(
        "clasp_pe",
        "our volume-level adaptation of ClaSP PE; Lüth et al., TMLR 2026, arXiv:2601.13677",
        score,
        repeat=0.0,
    ),
)
