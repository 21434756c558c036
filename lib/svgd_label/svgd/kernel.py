"""The SVGD velocity: radial basis function kernel, median bandwidth, drive and repulsion."""

import math

import torch
from torch import Tensor


def pairwise_distances(particles: Tensor) -> Tensor:
    """Euclidean distances between different particles.

    Args:
        particles: (M, P), one flattened parameter vector a row.

    Returns:
        (M * (M - 1) / 2,), the condensed upper triangle, row by row.
    """
    # Differences, not the matrix-product form of cdist: particles lie close together compared with their norm.
    return torch.nn.functional.pdist(particles)


def smallest_bandwidth(dtype: torch.dtype) -> float:
    """Below it 2/h is so close to overflow that the repulsion is no number."""
    return 4 * torch.finfo(dtype).tiny


def median_bandwidth(particles: Tensor) -> Tensor:
    """The median heuristic: h = median(d)^2 / log M, and h = 1 where M = 1 or the median is 0, or so near to it that
    h would be below :func:`smallest_bandwidth`.

    d are the distances between *different* particles and the median of an even number of them is the mean of the
    middle two, as in numpy and blackjax. Pyro's kernel takes one bandwidth per dimension and log(M + 1) instead.
    docs/method.md: "bandwidth".

    Args:
        particles: (M, P).

    Returns:
        A scalar tensor, constant under differentiation.
    """
    return _median_bandwidth(pairwise_distances(particles.detach()), particles.shape[0])


def _median_bandwidth(distances: Tensor, count: int) -> Tensor:
    if count < 2:
        return distances.new_ones(())
    h = torch.quantile(distances, 0.5).square() / math.log(count)
    return torch.where(h < smallest_bandwidth(h.dtype), torch.ones_like(h), h)


def phi(particles: Tensor, scores: Tensor, *, bandwidth: float | None = None) -> Tensor:
    """The velocity along which every particle moves (Liu and Wang 2016, equation 8).

    phi(theta_i) = 1/M * sum_j [ r(theta_j, theta_i) * score_j + grad_{theta_j} r(theta_j, theta_i) ]
    with r(a, b) = exp(-||a - b||^2 / h). The first term drives the particles to where the posterior is large, the
    second, 2/h * (theta_i - theta_j) * r, keeps them apart.

    These are blackjax's conventions (``length_scale`` is h); there the median heuristic follows each step instead of
    preceding it, and is not a number for one particle or a zero median, where h is 1 here. Pyro's h is a vector, for
    each dimension the lower median of the squared differences / log(M + 1): its ``multivariate`` velocity is
    phi(theta / sqrt(h), sqrt(h) * score, bandwidth=1) / sqrt(h), and its ``univariate`` one, the default there, takes
    phi of every dimension by itself.
    docs/method.md: "kernel" and "velocity".

    Args:
        particles: (M, P) float32 or float64, one flattened parameter vector a row.
        scores: (M, P), the gradients of log p(theta_j | D), of the same shape and type.
        bandwidth: h itself; None takes the median heuristic of :func:`median_bandwidth`.

    Returns:
        (M, P), to be *added* to the particles; a minimising optimizer takes its negative as the gradient.

    Raises:
        ValueError: for another shape or type, no particle, or a bandwidth below :func:`smallest_bandwidth`.
    """
    if particles.ndim != 2 or particles.shape != scores.shape or len(particles) == 0:
        raise ValueError(
            f"particles and scores must be matrices (M, P) of one shape with M >= 1, not {tuple(particles.shape)} "
            f"and {tuple(scores.shape)}"
        )
    if particles.dtype not in (torch.float32, torch.float64) or scores.dtype != particles.dtype:
        raise ValueError(
            f"particles and scores must both be float32 or both float64, not {particles.dtype} and {scores.dtype}"
        )
    # Shifted so that the first is zero, which changes no difference, the particles lose nothing to cancellation.
    return velocity_weights(particles, bandwidth=bandwidth) @ torch.cat([scores, particles - particles[0]])


def velocity_weights(particles: Tensor, *, bandwidth: float | None = None) -> Tensor:
    """The M x 2M matrix W with phi = W [scores; particles], the one product that touches all parameters.

    Its left half is the kernel, 1/M r(theta_j, theta_i). Its right half is the repulsion,
    2/(M h) sum_j r_ij (theta_i - theta_j), as the kernel's graph Laplacian; its rows sum to zero, so the particles may
    be shifted together.

    Args:
        particles: (M, P).
        bandwidth: as for :func:`phi`; the median heuristic's is constant under differentiation.

    Raises:
        ValueError: the bandwidth is below :func:`smallest_bandwidth`.
    """
    if bandwidth is not None and not bandwidth >= (least := smallest_bandwidth(particles.dtype)):
        raise ValueError(f"the bandwidth must be positive, at least {least:.1e} for {particles.dtype}, not {bandwidth}")
    count = particles.shape[0]
    distances = pairwise_distances(particles)
    h = _median_bandwidth(distances.detach(), count) if bandwidth is None else bandwidth
    kernel = torch.eye(count, dtype=particles.dtype, device=particles.device)
    rows, columns = torch.triu_indices(count, count, offset=1, device=particles.device)
    kernel[rows, columns] = kernel[columns, rows] = torch.exp(-distances.square() / h)
    kernel = kernel / count  # before 2/h, which may be near overflow
    laplacian = torch.diag(kernel.sum(dim=1)) - kernel
    return torch.cat([kernel, laplacian * (2 / h)], dim=1)
