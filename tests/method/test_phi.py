"""The SVGD velocity against the formula written out with autograd, and against answers known in closed form."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from svgd_label.likelihood import dice_log_likelihood
from svgd_label.svgd import SVGD, Committee, median_bandwidth, phi


def network() -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv3d(4, 3, 1))


def transcription(particles: Tensor, scores: Tensor, h: float) -> Tensor:
    """Equation 8 of Liu and Wang, one term after another, the kernel's gradient by autograd."""
    count = len(particles)
    result = torch.zeros_like(particles)
    for i in range(count):
        for j in range(count):
            a = particles[j].clone().requires_grad_()
            r = torch.exp(-((a - particles[i]) ** 2).sum() / h)
            (gradient,) = torch.autograd.grad(r, a)
            result[i] += r.detach() * scores[j] + gradient
    return result / count


def median_h(particles: Tensor) -> float:
    points = particles.numpy()
    distances = [np.linalg.norm(a - b) for k, a in enumerate(points) for b in points[k + 1 :]]
    return float(np.median(distances) ** 2 / math.log(len(points))) if distances else 1.0


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("given", [None, 3.0])
def test_phi_is_the_formula_for_a_network_with_dice_likelihood(
    size: int, dtype: torch.dtype, given: float | None
) -> None:
    committee = Committee.build(network, size=size, seed=3).to(dtype)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 1, 6, 5, 4, generator=generator, dtype=dtype)
    labels = torch.randint(0, 3, (2, 1, 6, 5, 4), generator=generator)
    scores = []
    for particle in committee.particles:
        value = dice_log_likelihood(particle(images), labels)
        gradients = torch.autograd.grad(value, list(particle.parameters()))
        scores.append(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    particles, score = committee.matrix(), torch.stack(scores)
    expected = transcription(particles, score, given or median_h(particles))
    tolerance = {"rtol": 1e-9, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2e-4, "atol": 1e-6}
    torch.testing.assert_close(phi(particles, score, bandwidth=given), expected, **tolerance)


def test_the_optimizer_steps_along_phi() -> None:
    committee = Committee.build(network, size=3, seed=1)
    optimizer = SVGD(torch.optim.SGD(committee.parameters(), lr=0.5), committee.trainable())
    x = torch.rand(1, 1, 4, 4, 4)
    for particle in committee.particles:
        (-particle(x).square().mean()).backward()
    before = committee.matrix()
    scores = -torch.stack([torch.cat([p.grad.reshape(-1) for p in ps]) for ps in committee.trainable()])
    expected = before + 0.5 * phi(before, scores)
    optimizer.step()
    torch.testing.assert_close(committee.matrix(), expected)


@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: torch.optim.Adam(p, lr=0.01)]
)
def test_one_particle_is_plain_gradient_ascent(make: Callable[..., torch.optim.Optimizer]) -> None:
    committee = Committee.build(network, size=1, seed=0)
    alone = Committee.build(network, size=1, seed=0)
    svgd, plain = SVGD(make(committee.parameters()), committee.trainable()), make(alone.parameters())
    x = torch.rand(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(0, 3, (1, 1, 4, 4, 4), generator=torch.Generator().manual_seed(2))
    for _ in range(10):
        for model, optimizer in ((committee, svgd), (alone, plain)):
            optimizer.zero_grad()
            (-dice_log_likelihood(model.particles[0](x), labels)).backward()
            optimizer.step()
    torch.testing.assert_close(committee.matrix(), alone.matrix())


@pytest.mark.parametrize("h", [0.5, 1.0, 4.0])
def test_two_particles_on_a_normal_settle_where_drive_and_repulsion_cancel(h: float) -> None:
    particles = torch.tensor([[-0.3], [1.1]], dtype=torch.float64)
    for _ in range(4000):
        particles = particles + 0.1 * phi(particles, -particles, bandwidth=h)
    settled = math.sqrt(h / 4 * math.log(1 + 4 / h))
    torch.testing.assert_close(particles.sort(dim=0).values, torch.tensor([[-settled], [settled]], dtype=torch.float64))


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_equidistant_particles_are_pushed_from_their_centroid_with_the_known_force(count: int) -> None:
    d = 2.5
    particles = torch.eye(count, dtype=torch.float64) * d / math.sqrt(2)
    velocity = phi(particles, torch.zeros_like(particles))
    assert torch.exp(-torch.tensor(d**2) / median_bandwidth(particles)).item() == pytest.approx(1 / count)
    force = 2 * math.log(count) / (count * d) * math.sqrt((count - 1) / (2 * count))
    outward = particles - particles.mean(dim=0)
    torch.testing.assert_close(velocity, force * outward / outward.norm(dim=1, keepdim=True))


def test_permutation_shift_and_rotation() -> None:
    generator = torch.Generator().manual_seed(0)
    particles = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    scores = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    velocity = phi(particles, scores)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(phi(particles[order], scores[order]), velocity[order])
    torch.testing.assert_close(phi(particles + 100, scores), velocity)
    rotation = torch.linalg.qr(torch.randn(7, 7, generator=generator, dtype=torch.float64)).Q
    torch.testing.assert_close(phi(particles @ rotation, scores @ rotation), velocity @ rotation)


def test_close_particles_far_from_the_origin_lose_no_digits_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    particles = 1000 + torch.randn(5, 50, generator=generator) * 0.01
    exact = phi(particles.double(), torch.zeros(5, 50, dtype=torch.float64))
    torch.testing.assert_close(phi(particles, torch.zeros(5, 50)).double(), exact, rtol=1e-4, atol=1e-4)
    parameters = [nn.Parameter(row.clone()) for row in particles]
    optimizer = SVGD(torch.optim.SGD(parameters, lr=1.0), [[parameter] for parameter in parameters])
    torch.testing.assert_close(optimizer.velocity().double(), exact, rtol=1e-4, atol=1e-4)


def test_the_median_bandwidth_is_constant_under_differentiation() -> None:
    generator = torch.Generator().manual_seed(0)
    particles, scores, direction = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    h = float(median_bandwidth(particles))
    gradients = []
    for bandwidth in (None, h):
        x = particles.clone().requires_grad_()
        gradients.append(torch.autograd.grad((phi(x, scores, bandwidth=bandwidth) * direction).sum(), x)[0])
    torch.testing.assert_close(*gradients)


def test_coincident_particles_give_the_mean_score_and_finite_numbers() -> None:
    particles = torch.ones(4, 3)
    scores = torch.arange(12.0).reshape(4, 3)
    assert median_bandwidth(particles) == 1
    torch.testing.assert_close(phi(particles, scores), scores.mean(dim=0).expand(4, 3))


def test_two_that_coincide_move_together_however_the_median_falls() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    for apart in (2, 1):  # of six distances one is 0, or three, which is half of them
        particles = torch.ones(4, 3, dtype=torch.float64)
        particles[-apart:] += torch.randn(apart, 3, generator=generator, dtype=torch.float64)
        velocity = phi(particles, scores)
        torch.testing.assert_close(velocity, transcription(particles, scores, median_h(particles)))
        torch.testing.assert_close(velocity[0], velocity[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [2, 20])
def test_nearly_coincident_particles_have_finite_velocities(dtype: torch.dtype, count: int) -> None:
    tiny = torch.finfo(dtype).tiny
    scores = torch.linspace(-1, 1, count, dtype=dtype).unsqueeze(1)
    for exponent in np.linspace(1.2, 0.3, 40):  # squared it is below the smallest number, around it, and above it
        particles = torch.arange(count, dtype=dtype).unsqueeze(1) * tiny**exponent
        h = median_bandwidth(particles)
        assert h >= 4 * tiny
        velocity = phi(particles, scores)
        assert velocity.isfinite().all()
        if h == 1:
            torch.testing.assert_close(velocity, scores.mean(dim=0).expand(count, 1))
    assert h < 1
    given = phi(torch.arange(count, dtype=dtype).unsqueeze(1) * tiny**0.5, scores, bandwidth=4 * tiny)
    assert given.isfinite().all()


@pytest.mark.parametrize(
    ("particles", "scores", "bandwidth", "sentence"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 2), None, "of one shape"),
        (torch.zeros(6), torch.zeros(6), None, "matrices"),
        (torch.zeros(2, 3, dtype=torch.bfloat16), torch.zeros(2, 3, dtype=torch.bfloat16), None, "float32"),
        (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.float64), None, "both"),
        (torch.zeros(2, 3), torch.zeros(2, 3), 0.0, "positive"),
        (torch.zeros(2, 3), torch.zeros(2, 3), 1e-38, "at least 4.7e-38"),
        (torch.zeros(2, 3), torch.zeros(2, 3), math.nan, "positive"),
        (torch.zeros(0, 3), torch.zeros(0, 3), None, "M >= 1"),
    ],
)
def test_wrong_arguments_are_refused(particles: Tensor, scores: Tensor, bandwidth: float | None, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        phi(particles, scores, bandwidth=bandwidth)


def test_a_gaussian_prior_pulls_to_zero() -> None:
    committee = Committee.build(network, size=2, seed=0)
    optimizer = SVGD(torch.optim.SGD(committee.parameters(), lr=1.0), committee.trainable(), prior_std=0.5)
    theta = committee.matrix()
    torch.testing.assert_close(optimizer.velocity(), phi(theta, -theta / 0.25))


def test_a_given_bandwidth_reaches_the_kernel() -> None:
    committee = Committee.build(network, size=3, seed=0)
    optimizer = SVGD(torch.optim.SGD(committee.parameters(), lr=1.0), committee.trainable(), bandwidth=7.0)
    theta = committee.matrix()
    torch.testing.assert_close(optimizer.velocity(), phi(theta, torch.zeros_like(theta), bandwidth=7.0))


def test_a_closure_computes_the_gradients_of_the_step_and_its_loss_is_returned() -> None:
    committee, other = (Committee.build(network, size=2, seed=0) for _ in range(2))
    x = torch.rand(1, 1, 4, 4, 4)

    def closure(model: Committee, optimizer: SVGD) -> Tensor:
        optimizer.zero_grad()
        loss = model.logits(x).square().mean()
        loss.backward()
        return loss.detach()

    with_closure, by_hand = (
        SVGD(torch.optim.SGD(model.parameters(), lr=0.1), model.trainable()) for model in (committee, other)
    )
    expected = closure(other, by_hand)
    by_hand.step()
    assert with_closure.step(lambda: closure(committee, with_closure)) == expected
    assert torch.equal(committee.matrix(), other.matrix())


def test_a_scheduler_and_a_checkpoint_reach_the_wrapped_optimizer() -> None:
    committee = Committee.build(network, size=2, seed=0)
    adam = torch.optim.Adam(committee.parameters(), lr=0.1)
    optimizer = SVGD(adam, committee.trainable())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
    for particle in committee.particles:
        particle(torch.rand(1, 1, 4, 4, 4)).sum().backward()
    optimizer.step()
    scheduler.step()
    assert adam.param_groups[0]["lr"] == pytest.approx(0.01)
    assert optimizer.state is adam.state
    saved = optimizer.state_dict()
    again = torch.optim.Adam(committee.parameters(), lr=0.5)
    restored = SVGD(again, committee.trainable())
    restored.load_state_dict(saved)
    assert restored.param_groups is again.param_groups
    assert again.param_groups[0]["lr"] == pytest.approx(0.01)
    assert len(again.state) == len(adam.state) > 0


def test_particles_of_two_architectures_are_refused() -> None:
    one, other = nn.Linear(2, 2), nn.Linear(3, 2)
    with pytest.raises(ValueError, match="one architecture"):
        SVGD(
            torch.optim.SGD([*one.parameters(), *other.parameters()], lr=1.0),
            [list(one.parameters()), list(other.parameters())],
        )


def test_particles_with_parameters_of_two_types_are_refused() -> None:
    particles = [[nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, dtype=torch.float64))] for _ in range(2)]
    with pytest.raises(ValueError, match="one type on one device"):
        SVGD(torch.optim.SGD([p for particle in particles for p in particle], lr=0.1), particles)


def test_particles_in_two_memory_formats_and_views_with_gaps_are_refused() -> None:
    committee = Committee.build(lambda: nn.Conv3d(2, 4, 3), size=2, seed=0)
    optimizer = SVGD(torch.optim.SGD(committee.parameters(), lr=0.1), committee.trainable())
    optimizer.step()
    committee.particles[1].to(memory_format=torch.channels_last_3d)
    with pytest.raises(ValueError, match="one memory format"):
        optimizer.step()
    committee.to(memory_format=torch.channels_last_3d)
    optimizer.step()
    for values in (torch.zeros(4, 6)[:, ::2], torch.zeros(4, 1).expand(4, 3)):
        gaps = [nn.Parameter(values) for _ in range(2)]
        with pytest.raises(ValueError, match="dense"):
            SVGD(torch.optim.SGD(gaps, lr=0.1), [[parameter] for parameter in gaps]).step()


def test_weights_that_are_laid_out_with_gaps_later_are_refused_at_every_step() -> None:
    weights = [nn.Parameter(torch.randn(8, 3)) for _ in range(2)]
    optimizer = SVGD(torch.optim.SGD(weights, lr=0.1), [[parameter] for parameter in weights])
    for parameter in weights:
        parameter.data = torch.randn(8, 6)[:, ::2]
    for _ in range(2):
        with pytest.raises(ValueError, match="dense"):
            optimizer.step()


def test_the_velocity_of_channels_last_weights_is_in_the_order_of_the_matrix() -> None:
    committee = Committee.build(lambda: nn.Conv3d(2, 4, 3), size=3, seed=0).to(memory_format=torch.channels_last_3d)
    optimizer = SVGD(torch.optim.SGD(committee.parameters(), lr=1.0), committee.trainable(), prior_std=0.5)
    theta = committee.matrix()
    torch.testing.assert_close(optimizer.velocity(), phi(theta, -theta / 0.25))


def test_asking_for_the_velocity_changes_nothing_and_a_step_leaves_its_own_gradients() -> None:
    committee, twin = (Committee.build(network, size=3, seed=0) for _ in range(2))
    optimizer, other = (SVGD(torch.optim.SGD(c.parameters(), lr=0.1), c.trainable()) for c in (committee, twin))
    x = torch.rand(1, 1, 4, 4, 4)
    for _ in range(4):
        for model in (committee, twin):
            model.zero_grad()
            model.logits(x).square().mean().backward()
        velocity = optimizer.velocity()
        torch.testing.assert_close(optimizer.velocity(), velocity, rtol=0, atol=0)
        optimizer.step()
        other.step()
        torch.testing.assert_close(committee.matrix(), twin.matrix(), rtol=0, atol=0)
        left = torch.stack([torch.cat([p.grad.reshape(-1) for p in ps]) for ps in committee.trainable()])
        torch.testing.assert_close(left, -velocity)


def test_channels_last_weights_move_as_contiguous_ones_do() -> None:
    def layers() -> nn.Module:
        return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv3d(4, 3, 3))

    plain, last = (Committee.build(layers, size=3, seed=0) for _ in range(2))
    last.to(memory_format=torch.channels_last_3d)
    x = torch.rand(1, 1, 4, 4, 4)
    for committee in (plain, last):
        optimizer = SVGD(torch.optim.SGD(committee.parameters(), lr=0.1), committee.trainable(), prior_std=2.0)
        for _ in range(3):
            optimizer.zero_grad()
            committee.logits(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(last.matrix(), plain.matrix())


def test_a_committee_may_be_moved_after_its_optimizer_was_made() -> None:
    committee, other = (Committee.build(network, size=2, seed=0) for _ in range(2))
    optimizer = SVGD(torch.optim.SGD(committee.parameters(), lr=0.1), committee.trainable())
    committee.double()
    reference = SVGD(torch.optim.SGD(other.double().parameters(), lr=0.1), other.trainable())
    x = torch.rand(1, 1, 4, 4, 4, dtype=torch.float64)
    for _ in range(2):
        for model, step in ((committee, optimizer), (other, reference)):
            step.zero_grad()
            model.logits(x).square().mean().backward()
            step.step()
    assert torch.equal(committee.matrix(), other.matrix())


def test_weights_laid_out_anew_after_backward_keep_their_gradients() -> None:
    committee, other = (Committee.build(lambda: nn.Conv3d(2, 4, 3), size=2, seed=0) for _ in range(2))
    optimizer, reference = (SVGD(torch.optim.SGD(c.parameters(), lr=0.1), c.trainable()) for c in (committee, other))
    x = torch.rand(1, 2, 4, 4, 4)
    for model in (committee, other):
        model.logits(x).square().mean().backward()
    for weight in committee.parameters():
        if weight.ndim == 5:
            weight.data = weight.data.to(memory_format=torch.channels_last_3d)
    optimizer.step()
    reference.step()
    torch.testing.assert_close(committee.matrix(), other.matrix())


def test_a_graph_of_the_gradients_is_no_obstacle_and_an_optimizer_that_has_gone_leaves_no_hook() -> None:
    committee = Committee.build(network, size=2, seed=0)
    optimizer = SVGD(torch.optim.SGD(committee.parameters(), lr=0.1), committee.trainable())
    committee.logits(torch.rand(1, 1, 4, 4, 4)).square().mean().backward(create_graph=True)
    optimizer.step()
    committee.zero_grad()
    del optimizer
    committee.logits(torch.rand(1, 1, 4, 4, 4)).square().mean().backward()
    held = {p.grad.untyped_storage().data_ptr() for p in committee.parameters() if p.grad is not None}
    assert len(held) == len(list(committee.parameters()))
