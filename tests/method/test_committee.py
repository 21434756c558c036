"""The committee: M independent networks whose output is their mean probability."""

import pytest
import torch
from torch import nn

from svgd_label.svgd import SVGD, Committee


def network() -> nn.Module:
    return nn.Conv3d(1, 3, 3, padding=1)


def test_forward_is_the_mean_softmax_of_the_particles_logits() -> None:
    committee = Committee.build(network, size=4, seed=0)
    x = torch.rand(2, 1, 5, 4, 3)
    logits = committee.logits(x)
    assert logits.shape == (4, 2, 3, 5, 4, 3)
    torch.testing.assert_close(committee(x), logits.softmax(dim=2).mean(dim=0))
    torch.testing.assert_close(committee(x).sum(dim=1), torch.ones(2, 5, 4, 3))


def test_particles_start_apart_and_the_same_for_one_seed() -> None:
    state = torch.random.get_rng_state()
    first, second = (Committee.build(network, size=3, seed=7) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.matrix(), second.matrix())
    assert not torch.equal(first.matrix(), Committee.build(network, size=3, seed=8).matrix())
    assert first.mean_distance() > 0


def test_mean_distance_is_over_different_particles() -> None:
    committee = Committee.build(network, size=3, seed=0)
    rows = committee.matrix()
    pairs = [(rows[i] - rows[j]).norm() for i in range(3) for j in range(i)]
    torch.testing.assert_close(torch.tensor(committee.mean_distance()), torch.stack(pairs).mean())
    assert Committee.build(network, size=1, seed=0).mean_distance() == 0


def test_frozen_parameters_are_not_moved() -> None:
    committee = Committee.build(network, size=2, seed=0)
    for particle in committee.particles:
        particle.bias.requires_grad_(False)
    assert committee.matrix().shape == (2, 3 * 27)


def test_a_committee_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one particle"):
        Committee([])


def test_the_layout_of_weights_in_memory_changes_no_step() -> None:
    x = torch.rand(2, 1, 6, 5, 4, generator=torch.Generator().manual_seed(0))
    ended = []
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        committee = Committee.build(lambda: nn.Sequential(nn.Conv3d(1, 4, 3), nn.Conv3d(4, 3, 2)), size=3, seed=0)
        for particle in committee.particles:
            particle.to(memory_format=layout)
        optimizer = SVGD(torch.optim.SGD(committee.parameters(), lr=0.5), committee.trainable())
        for _ in range(3):
            optimizer.zero_grad()
            committee.logits(x.contiguous(memory_format=layout)).square().mean().backward()
            if layout is not torch.contiguous_format:  # a gradient may be laid out otherwise than its parameter
                for parameter in committee.particles[0].parameters():
                    parameter.grad = parameter.grad.contiguous()
            optimizer.step()
        ended.append(committee)
    assert ended[1].particles[0][1].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert not ended[1].particles[0][1].weight.is_contiguous()
    torch.testing.assert_close(ended[1].matrix(), ended[0].matrix())
