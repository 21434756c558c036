"""Entropy, expected entropy, JSD and variance: closed forms, invariants, and running sums."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.spatial.distance import jensenshannon

from svgd_label.uncertainty import ParticleMoments, entropy, maps


def moments(particles: torch.Tensor) -> torch.Tensor:
    sums = ParticleMoments()
    for particle in particles:
        sums.add(particle)
    return sums.stacked()


def test_entropy_in_nats() -> None:
    p = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    torch.testing.assert_close(entropy(p, dim=1), torch.tensor([0.0, math.log(2), math.log(3)]))


def test_entropy_is_along_the_axis_it_is_given() -> None:
    p = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).softmax(dim=2)
    assert entropy(p, dim=2).shape == (2, 3, 5)
    torch.testing.assert_close(entropy(p, dim=2), -(p * p.log()).sum(dim=2))


def test_jsd_of_two_particles_is_the_square_of_scipys_distance() -> None:
    particles = torch.randn(2, 1, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    particles = particles.softmax(dim=2)
    distance = jensenshannon(particles[0, 0].numpy(), particles[1, 0].numpy(), axis=0)
    np.testing.assert_allclose(maps(moments(particles)).jsd[0], distance**2, rtol=1e-9)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_particles_certain_of_as_many_classes_disagree_by_the_log_of_their_number(size: int) -> None:
    particles = torch.eye(size, dtype=torch.float64).reshape(size, 1, size, 1, 1, 1)
    found = maps(moments(particles))
    assert found.entropy.item() == pytest.approx(math.log(size))
    assert found.jsd.item() == pytest.approx(math.log(size))
    assert found.variance.item() == pytest.approx(1 - 1 / size)  # size classes, each (1 / size) (1 - 1 / size)


def test_opposite_certain_particles_disagree_by_log_two() -> None:
    particles = torch.zeros(2, 1, 2, 1, 1, 1)
    particles[0, 0, 0] = particles[1, 0, 1] = 1
    found = maps(moments(particles))
    assert found.entropy.item() == torch.tensor(math.log(2)).item()
    assert found.expected_entropy.item() == 0
    assert found.jsd.item() == torch.tensor(math.log(2)).item()
    assert found.variance.item() == 0.5  # 0.25 for each of the two classes


def test_equal_particles_do_not_disagree() -> None:
    particle = torch.rand(1, 3, 2, 2, 2).softmax(dim=1)
    found = maps(moments(particle.expand(4, *particle.shape)))
    torch.testing.assert_close(found.jsd, torch.zeros_like(found.jsd), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.variance, torch.zeros_like(found.variance), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.entropy, entropy(particle, dim=1))


def test_rounding_makes_no_disagreement_and_no_entropy_negative() -> None:
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        particle = (10 * torch.randn(1, 3, 4, 4, 4, generator=generator)).softmax(dim=1)
        found = maps(moments(particle.expand(3, *particle.shape)))
        assert found.jsd.min() >= 0
        assert found.variance.min() >= 0
        assert entropy(particle * (1 + 2e-7), dim=1).min() >= 0  # as blending may leave it


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(2, 5), st.floats(0.1, 30))
def test_invariants_and_running_sums(seed: int, size: int, classes: int, sharpness: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    particles = (torch.randn(size, 2, classes, 3, 2, 2, generator=generator) * sharpness).softmax(dim=2)
    found = maps(moments(particles))
    mean = particles.mean(dim=0)
    torch.testing.assert_close(found.mean, mean)
    torch.testing.assert_close(found.entropy, entropy(mean, dim=1))
    torch.testing.assert_close(found.expected_entropy, entropy(particles, dim=2).mean(dim=0))
    torch.testing.assert_close(found.variance, particles.var(dim=0, unbiased=False).sum(dim=1), atol=1e-6, rtol=1e-4)
    tolerance = 1e-5
    assert (found.jsd >= 0).all()
    assert (found.jsd <= found.entropy + tolerance).all()
    assert (found.entropy <= math.log(classes) + tolerance).all()
    torch.testing.assert_close(found.jsd, found.entropy - found.expected_entropy, atol=1e-5, rtol=0)
    exact = particles.double()
    divergence = (torch.xlogy(exact, exact) - torch.xlogy(exact, exact.mean(dim=0))).sum(dim=2).mean(dim=0)
    torch.testing.assert_close(found.jsd.double(), divergence, atol=1e-5, rtol=0)


def test_a_certain_voxel_has_no_entropy_and_no_sign() -> None:
    found = entropy(torch.tensor([[1.0, 0, 0]]), dim=1)
    assert found.item() == 0 and not found.signbit().item()
