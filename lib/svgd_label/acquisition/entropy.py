"""The committee's entropy alone."""

from svgd_label.acquisition.candidates import QueryStrategy

STRATEGIES = (
    QueryStrategy(
        "entropy",
        "entropy of the particle average; Nath et al., IEEE TMI 2020, without mutual information",
        lambda candidates, _: candidates.entropy,
        repeat=1.0,
    ),
)
