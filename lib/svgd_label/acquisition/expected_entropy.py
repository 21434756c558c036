"""The mean of the particles' own entropies: doubt within the particles, not between them."""

from svgd_label.acquisition.candidates import QueryStrategy

STRATEGIES = (
    QueryStrategy(
        "expected_entropy",
        "mean entropy of the single particles; the other reading of Nath et al., IEEE TMI 2020",
        lambda candidates, _: candidates.expected_entropy,
        repeat=1.0,
    ),
)
