"""Stochastic batches: BALD sampled by importance, so that the images of one query are not all alike."""

from svgd_label.acquisition.candidates import Candidates, QueryStrategy, Vector, log


def score(candidates: Candidates, _: Candidates) -> Vector:
    """log JSD + Gumbel / beta with beta = 1, PowerBALD (Kirsch et al. 2023, section 3).

    The best k of it are k draws without replacement with probabilities proportional to JSD ** beta.
    """
    return log(candidates.jsd) + candidates.gumbel[:, 0]


STRATEGIES = (
    QueryStrategy(
        "power_noise",
        "PowerBALD, stochastic batch acquisition; Kirsch et al., TMLR 2023, arXiv:2106.12059",
        score,
        repeat=0.0,
    ),
)
