"""What a query strategy sees of the pool, and the shape every strategy has."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Candidates:
    """The scorable images, one row each, in the order of ``images``. Entropies and information in nats."""

    images: tuple[str, ...]
    labelled: NDArray[np.bool_]
    entropy: Vector
    expected_entropy: Vector
    jsd: Vector
    mutual_information: Vector
    """With the labelled images."""
    alpha: float = 1.0
    """Weight of entropy against mutual information."""

    def __len__(self) -> int:
        return len(self.images)

    def select(self, keep: NDArray[np.bool_]) -> "Candidates":
        """The rows where ``keep`` is true."""
        rows = {f.name: getattr(self, f.name)[keep] for f in fields(self) if f.name not in ("images", "alpha")}
        return Candidates(
            images=tuple(image for image, kept in zip(self.images, keep, strict=True) if kept), alpha=self.alpha, **rows
        )


@dataclass(frozen=True)
class QueryStrategy:
    """A way to choose what to label next."""

    name: str
    source: str
    """Where it comes from, for people."""
    score: Callable[[Candidates, np.random.Generator], Vector]
    """(N,) scores; the greatest is asked first."""
    keeps_labelled: bool
    """Whether labelled images stay in the pool, so that those still unsure are trained on more often."""


def min_max(values: Vector) -> Vector:
    """Values stretched to [0, 1]; 0 everywhere where all are equal."""
    spread = np.ptp(values) if values.size else 0.0
    return (values - values.min()) / spread if spread > 0 else np.zeros_like(values)
