"""The velocity and whole runs equal those of blackjax and of pyro, two implementations that share no code with ours."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from svgd_label.svgd import SVGD, Committee, median_bandwidth, phi

FEATURES, CASES, PRIOR = 4, 30, 1.5


@pytest.fixture
def other() -> Iterator[SimpleNamespace]:
    """blackjax's SVGD, in float64 for this test alone."""
    pytest.importorskip("blackjax", reason="blackjax is not installed: pip install 'svgd-label[dev]'")
    import jax
    import optax
    from blackjax.vi import svgd
    from jax.experimental import enable_x64

    with enable_x64():
        yield SimpleNamespace(jax=jax, np=jax.numpy, optax=optax, svgd=svgd)


@pytest.fixture
def pyro() -> Iterator[Any]:
    module = pytest.importorskip("pyro", reason="pyro is not installed: pip install pyro-ppl")
    module.clear_param_store()
    yield module
    module.clear_param_store()


def logistic_data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(CASES, FEATURES, generator=generator, dtype=torch.float64)
    return x, (x[:, 0] > x[:, 1]).double()


@pytest.mark.parametrize(("count", "size"), [(2, 1), (5, 40), (6, 3)])
@pytest.mark.parametrize("given", [None, 0.7, 30.0])
def test_phi_is_blackjaxs(other: SimpleNamespace, count: int, size: int, given: float | None) -> None:
    # 10 and 15 distances at 5 and 6 particles: an even number, whose median is a mean, and an odd one.
    generator = torch.Generator().manual_seed(count)
    particles = torch.randn(count, size, generator=generator, dtype=torch.float64)
    field = torch.randn(size, size, generator=generator, dtype=torch.float64)

    step = other.svgd.as_top_level_api(lambda x: other.np.sin(field.numpy() @ x), other.optax.sgd(1.0))
    state = step.init(other.np.asarray(particles.numpy()), {"length_scale": given or 1.0})
    if given is None:
        state = other.svgd.update_median_heuristic(state)
    length_scale = float(state.kernel_parameters["length_scale"])
    moved = np.asarray(step.step(state).particles)
    assert moved.dtype == np.float64

    if given is None:
        assert median_bandwidth(particles).item() == pytest.approx(length_scale, rel=1e-12)
    velocity = phi(particles, torch.sin(particles @ field.T), bandwidth=given)
    np.testing.assert_allclose(velocity, moved - particles.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bandwidth", [None, 2.0])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9), lambda optax: optax.sgd(0.2, momentum=0.9)),
        (lambda p: torch.optim.Adam(p, lr=0.05), lambda optax: optax.adam(0.05)),
    ],
    ids=["sgd", "adam"],
)
def test_a_committee_walks_as_blackjaxs_particles_do(
    other: SimpleNamespace,
    ours: Callable[..., torch.optim.Optimizer],
    theirs: Callable[[Any], Any],
    bandwidth: float | None,
) -> None:
    x, y = logistic_data()
    committee = Committee.build(lambda: nn.Linear(FEATURES, 1), size=5, seed=0).double()
    start = {
        "weight": other.np.asarray(np.stack([p.weight.detach().numpy() for p in committee.particles])),
        "bias": other.np.asarray(np.stack([p.bias.detach().numpy() for p in committee.particles])),
    }

    def log_density(particle: Any) -> Any:
        logits = x.numpy() @ particle["weight"][0] + particle["bias"]
        likelihood = (y.numpy() * logits - other.np.logaddexp(0, logits)).mean()
        return likelihood - sum((value**2).sum() for value in particle.values()) / (2 * PRIOR**2)

    update = other.svgd.update_median_heuristic if bandwidth is None else lambda state: state
    algorithm = other.svgd.as_top_level_api(
        other.jax.grad(log_density), theirs(other.optax), update_kernel_parameters=update
    )
    # blackjax takes its first step with the length scale that it is given and updates it afterwards.
    state = update(algorithm.init(start, {"length_scale": bandwidth or 1.0}))
    step = other.jax.jit(algorithm.step)

    optimizer = SVGD(ours(committee.parameters()), committee.trainable(), bandwidth=bandwidth, prior_std=PRIOR)
    before = committee.matrix()
    for _ in range(60):
        state = step(state)
        optimizer.zero_grad()
        for particle in committee.particles:
            nn.functional.binary_cross_entropy_with_logits(particle(x)[:, 0], y).backward()
        optimizer.step()
    assert (committee.matrix() - before).abs().max() > 0.3
    for name, values in state.particles.items():
        found = torch.stack([getattr(particle, name) for particle in committee.particles]).detach()
        np.testing.assert_allclose(found, np.asarray(values), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("mode", ["multivariate", "univariate"])
def test_pyros_particles_are_ours_with_a_bandwidth_for_each_dimension(pyro: Any, mode: str) -> None:
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    precision = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 0.7]], dtype=torch.float64)
    target = pyro.distributions.MultivariateNormal(mean, precision_matrix=precision)
    pyro.set_rng_seed(0)
    svgd = pyro.infer.SVGD(
        lambda: pyro.sample("x", target),
        pyro.infer.RBFSteinKernel(),
        pyro.optim.SGD({"lr": 0.3}),
        num_particles=6,
        max_plate_nesting=0,
        mode=mode,
    )
    svgd.guide()  # draws the particles
    particles = svgd.get_named_particles()["x"].detach().clone().reshape(6, 3)
    for _ in range(20):
        svgd.step()
        scores = -(particles - mean) @ precision
        pairs = torch.combinations(torch.arange(6))
        squares = (particles[pairs[:, 0]] - particles[pairs[:, 1]]).square()
        h = squares.median(dim=0).values / np.log(6 + 1)  # torch's median: the lower of the middle two
        if mode == "multivariate":  # one kernel over coordinates stretched to h = 1
            velocity = phi(particles / h.sqrt(), scores * h.sqrt(), bandwidth=1.0) / h.sqrt()
        else:  # one kernel a dimension
            velocity = torch.cat(
                [phi(particles[:, [d]], scores[:, [d]], bandwidth=h[d].item()) for d in range(3)], dim=1
            )
        particles = particles + 0.3 * velocity
    torch.testing.assert_close(svgd.get_named_particles()["x"].detach().reshape(6, 3), particles)
