"""The paper's rule: much entropy, little mutual information with what is labelled."""

from svgd_label.acquisition.candidates import Candidates, QueryStrategy, Vector, min_max


def score(candidates: Candidates, _: Candidates) -> Vector:
    """alpha * norm(H) - (1 / alpha) * norm(MI), norm the min-max over the pool (Nath et al. 2020, section III).

    docs/method.md: "score".
    """
    return candidates.alpha * min_max(candidates.entropy) - min_max(candidates.mutual_information) / candidates.alpha


SOURCE = "Nath et al., IEEE TMI 2020, arXiv:2101.02323"

STRATEGIES = (
    QueryStrategy("entropy_mi", SOURCE, score, repeat=1.0),
    QueryStrategy("entropy_mi_delete", f"{SOURCE}; labelled images leave the pool", score, repeat=0.0),
)
