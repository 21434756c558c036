"""Entropy and its siblings: from the particles' probabilities to maps per voxel, in nats."""

from dataclasses import dataclass

import torch
from torch import Tensor


def entropy(probabilities: Tensor, dim: int) -> Tensor:
    """Shannon entropy -sum_c p_c log p_c in nats along ``dim``, with 0 log 0 = 0.

    Of the particle average this is the committee's uncertainty (Nath et al. 2020, section III).

    Args:
        probabilities: any shape, non-negative and summing to 1 along ``dim``.
        dim: the class axis, which the result has no longer.
    """
    terms: Tensor = torch.special.entr(probabilities)
    return terms.sum(dim=dim)


@dataclass
class ParticleMoments:
    """Running sums over particles, from which every map follows without holding M volumes.

    Each map has the shape (B, *spatial). ``add`` takes one particle's probabilities, (B, C, *spatial).
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
        """Mean probabilities, mean square summed over classes, mean entropy: (B, C + 2, *spatial).

        One tensor, because that is what a sliding window can stitch; :func:`maps` takes it apart again.
        """
        assert self.total is not None and self.squares is not None and self.entropies is not None
        return torch.cat([self.total, self.squares.unsqueeze(1), self.entropies.unsqueeze(1)], dim=1) / self.count


@dataclass(frozen=True)
class UncertaintyMaps:
    """What the committee thinks of an image; shapes (B, C, *spatial) for ``mean``, (B, *spatial) for the rest."""

    mean: Tensor
    entropy: Tensor
    """Of the particle average, H(mean), at most log C."""
    expected_entropy: Tensor
    """Mean over particles of each one's own entropy, never above ``entropy``."""
    jsd: Tensor
    """Jensen-Shannon divergence with equal weights, H(mean) - mean H, which is BALD (Kuo 2018; Houlsby 2011).

    The square of scipy's ``jensenshannon``, which gives the distance of two; 0 where all particles agree."""
    variance: Tensor
    """Over particles (1/M, not 1/(M - 1)), summed over classes."""


def maps(stacked: Tensor) -> UncertaintyMaps:
    """The maps from the stitched sums of :meth:`ParticleMoments.stacked`."""
    mean, squares, expected = stacked[:, :-2], stacked[:, -2], stacked[:, -1]
    total = entropy(mean, dim=1)
    return UncertaintyMaps(
        mean=mean,
        entropy=total,
        expected_entropy=expected,
        jsd=(total - expected).clamp(min=0),
        variance=(squares - mean.square().sum(dim=1)).clamp(min=0),
    )
