"""Random order in which much predicted foreground comes early: a harder baseline than plain chance."""

from svgd_label.acquisition.candidates import Candidates, QueryStrategy, Vector, log


def score(candidates: Candidates, _: Candidates) -> Vector:
    """log of the predicted foreground voxels + Gumbel: draws without replacement, in proportion to the volume.

    The Gumbel top-k trick (Vieira 2014; Kool et al. 2019, arXiv:1903.06059). Images without foreground come last.
    """
    return log(candidates.volumes.sum(axis=1)) + candidates.gumbel[:, 0]


STRATEGIES = (
    QueryStrategy("random_foreground", "baseline: random, weighted by the predicted foreground", score, repeat=0.0),
)
