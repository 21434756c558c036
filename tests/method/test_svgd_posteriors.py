"""Many particles in few dimensions take the mean and covariance of posteriors known in closed form, within 10 %."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from svgd_label.svgd import phi


def settle(start: Tensor, log_density: Callable[[Tensor], Tensor], *, steps: int = 400, rate: float = 0.2) -> Tensor:
    """The particles, a row each, after SVGD under Adam whose learning rate falls to 0."""
    particles = nn.Parameter(start.clone())
    adam = torch.optim.Adam([particles], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        (scores,) = torch.autograd.grad(log_density(particles).sum(), particles)
        particles.grad = -phi(particles.detach(), scores)
        adam.step()
        schedule.step()
    return particles.detach()


def assert_moments(particles: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """The mean within a tenth of each standard deviation; of the covariance each entry, on the scale of those."""
    deviation = covariance.diagonal().sqrt()
    assert ((particles.mean(dim=0) - mean).abs() < 0.1 * deviation).all()
    found = torch.cov(particles.T).reshape(covariance.shape)
    assert ((found - covariance).abs() < 0.1 * deviation.outer(deviation)).all()


def normal_start(count: int, size: int) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def mixture(weights: Tensor, means: Tensor) -> torch.distributions.MixtureSameFamily:
    normal = torch.distributions.Independent(torch.distributions.Normal(means, torch.ones_like(means)), 1)
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(weights), normal)


def test_a_correlated_gaussian() -> None:
    mean = torch.tensor([1.0, -2.0], dtype=torch.float64)
    covariance = torch.tensor([[1.0, 0.6], [0.6, 2.0]], dtype=torch.float64)
    target = torch.distributions.MultivariateNormal(mean, covariance)
    assert_moments(settle(normal_start(120, 2), target.log_prob), mean, covariance)


def test_liu_and_wangs_mixture_from_a_start_far_off_one_side() -> None:
    # Section 5 of the paper: 1/3 N(-2, 1) + 2/3 N(2, 1) from N(-10, 1); the nearer mode is the smaller.
    weights, means = torch.tensor([1 / 3, 2 / 3]).double(), torch.tensor([[-2.0], [2.0]]).double()
    particles = settle(normal_start(100, 1) - 10, mixture(weights, means).log_prob, steps=800, rate=0.6)
    assert 0.28 < (particles < 0).double().mean() < 0.39
    assert_moments(particles, torch.tensor([2 / 3]), torch.tensor([[1 + 4 - 4 / 9]]))


def test_a_mixture_of_two_modes_in_the_plane() -> None:
    weights, means = torch.tensor([0.5, 0.5]).double(), torch.tensor([[-2.0, -1.0], [2.0, 1.0]]).double()
    particles = settle(normal_start(100, 2), mixture(weights, means).log_prob)
    for mode in means:
        assert 40 <= ((particles - mode).norm(dim=1) < (particles + mode).norm(dim=1)).sum() <= 60
    assert_moments(particles, torch.zeros(2), torch.eye(2) + means[1].outer(means[1]))


def test_bayesian_linear_regression() -> None:
    noise, prior, count = 0.8, 2.0, 15
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    x[:, 0] = 1
    errors = torch.randn(count, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64) + noise * errors

    covariance = torch.linalg.inv(x.T @ x / noise**2 + torch.eye(3) / prior**2)
    mean = covariance @ x.T @ y / noise**2

    def log_posterior(weights: Tensor) -> Tensor:
        residuals = y - weights @ x.T
        return -residuals.square().sum(dim=1) / (2 * noise**2) - weights.square().sum(dim=1) / (2 * prior**2)

    assert_moments(settle(normal_start(200, 3), log_posterior), mean, covariance)
