"""Jensen-Shannon divergence of the particles, which with equal weights is BALD."""

from svgd_label.acquisition.candidates import QueryStrategy

STRATEGIES = (
    QueryStrategy(
        "jsd",
        "Kuo et al., MICCAI 2018; the same quantity as BALD, Houlsby et al. 2011, arXiv:1112.5745",
        lambda candidates, _: candidates.jsd,
        repeat=1.0,
    ),
)
