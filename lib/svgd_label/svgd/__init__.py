"""Stein variational gradient descent on the parameters of a committee of networks. Knows torch only.

Liu and Wang, "Stein Variational Gradient Descent", NeurIPS 2016, arXiv:1608.04471.
"""

from svgd_label.svgd.committee import Committee
from svgd_label.svgd.kernel import median_bandwidth, pairwise_distances, phi
from svgd_label.svgd.optimizer import SVGD

__all__ = ["SVGD", "Committee", "median_bandwidth", "pairwise_distances", "phi"]
