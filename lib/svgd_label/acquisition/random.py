"""Random order: the baseline that every other strategy has to beat."""

from svgd_label.acquisition.candidates import QueryStrategy

STRATEGIES = (QueryStrategy("random", "baseline", lambda candidates, _: candidates.gumbel[:, 0], repeat=0.0),)
