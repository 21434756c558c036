"""Entropy and its siblings: from the particles' probabilities to maps per voxel, in nats."""

from dataclasses import dataclass

import torch
from torch import Tensor


def entropy(probabilities: Tensor, dim: int) -> Tensor:
    """Shannon entropy -sum_c p_c log p_c in nats along ``dim``, with 0 log 0 = 0.

    Of the particle average this is the committee's uncertainty (Nath et al. 2020, section III).
    docs/method.md: "entropy".

    Args:
        probabilities: any shape, non-negative and summing to 1 along ``dim``.
        dim: the class axis, which the result has no longer.

    Returns:
        At least 0, also where rounding has made a probability greater than 1.
    """
    # torch.special.entr takes one logarithm after the other: five times as long on a CPU.
    logarithms = probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()
    return (probabilities * logarithms).sum(dim=dim).clamp(max=0).abs()


@dataclass
class ParticleMoments:
    """Running sums over particles in one window, from which every map follows without holding M volumes.

    Each sum has the shape (B, *spatial). ``add`` takes one particle's probabilities, (B, C, *spatial).
    """

    count: int = 0
    total: Tensor | None = None
    squares: Tensor | None = None
    entropies: Tensor | None = None

    def add(self, probabilities: Tensor) -> None:
        """Takes in one particle."""
        self.count += 1
        squares, entropies = probabilities.square().sum(dim=1), entropy(probabilities, dim=1)
        if self.total is None or self.squares is None or self.entropies is None:
            self.total, self.squares, self.entropies = probabilities.clone(), squares, entropies
        else:
            self.total += probabilities
            self.squares += squares
            self.entropies += entropies

    def stacked(self) -> Tensor:
        """Mean probabilities, variance summed over classes, mean entropy, JSD: (B, C + 3, *spatial).

        One tensor, because that is what a sliding window can stitch; :func:`maps` takes it apart again. Variance and
        JSD are taken here, of the particles in this window alone: from stitched sums they would grow by what
        neighbouring windows differ in.
        """
        assert self.total is not None and self.squares is not None and self.entropies is not None
        mean, expected = self.total / self.count, self.entropies / self.count
        variance = (self.squares / self.count - mean.square().sum(dim=1)).clamp(min=0)
        jsd = (entropy(mean, dim=1) - expected).clamp(min=0)
        return torch.cat([mean, torch.stack([variance, expected, jsd], dim=1)], dim=1)


@dataclass(frozen=True)
class UncertaintyMaps:
    """What the committee thinks of an image; shapes (B, C, *spatial) for ``mean``, (B, *spatial) for the rest.

    Where windows overlap, each map but ``entropy`` is the blend of theirs.
    """

    mean: Tensor
    entropy: Tensor
    """Of the particle average, H(mean), blended before: at least 0, at most log C."""
    expected_entropy: Tensor
    """Mean over particles of each one's own entropy, never above ``entropy``."""
    jsd: Tensor
    """Jensen-Shannon divergence with equal weights, H(mean) - mean H, which is BALD (Kuo 2018; Houlsby 2011).

    The square of scipy's ``jensenshannon``, which gives the distance of two; 0 where all particles agree. Where windows
    overlap it is at most ``entropy - expected_entropy``, which holds what the windows differ in too."""
    variance: Tensor
    """Over particles (1/M, not 1/(M - 1)), summed over classes."""


def maps(stacked: Tensor) -> UncertaintyMaps:
    """The maps from what :meth:`ParticleMoments.stacked` gives, (B, C + 3, *spatial), stitched or of one window.

    docs/method.md: "expected entropy" and "JSD = BALD".
    """
    mean = stacked[:, :-3]
    variance, expected, jsd = stacked[:, -3:].unbind(dim=1)
    return UncertaintyMaps(
        mean=mean, entropy=entropy(mean, dim=1), expected_entropy=expected, jsd=jsd, variance=variance
    )
