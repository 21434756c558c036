"""What a query strategy sees of the pool, and the shape every strategy has."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

_POOL_WIDE = ("images", "alpha", "queries", "progress")


@dataclass(frozen=True, eq=False)
class Candidates:
    """The N scorable images, one row each, in the order of ``images``. Entropies and information in nats.

    C is the number of foreground classes, F the length of a feature vector.
    """

    images: tuple[str, ...]
    labelled: NDArray[np.bool_]
    entropy: Vector
    expected_entropy: Vector
    jsd: Vector
    mutual_information: Vector
    """With the labelled images."""
    class_entropy: Matrix
    """(N, C): entropy weighted by each foreground class's probability."""
    volumes: Matrix
    """(N, C): predicted voxels of each foreground class."""
    features: Matrix
    """(N, F): pooled bottleneck of the network."""
    gumbel: Matrix
    """(N, 1 + C): standard Gumbel noise that belongs to each image, see :func:`gumbel_noise`."""
    alpha: float = 1.0
    """Weight of entropy against mutual information."""
    queries: int = 1
    """Images picked in one active step; what is asked as a batch is put together for so many."""
    progress: float = 0.0
    """Share of the planned active steps that is over, 0 to 1."""

    def __len__(self) -> int:
        return len(self.images)

    def select(self, rows: NDArray[np.intp]) -> "Candidates":
        """These rows, in this order."""
        columns = {name: column[rows] for name, column in self.columns().items()}
        return replace(self, images=tuple(self.images[row] for row in rows), **columns)

    def columns(self) -> dict[str, Any]:
        """What has a row for each image, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _POOL_WIDE}


@dataclass(frozen=True)
class QueryStrategy:
    """A way to choose what to label next."""

    name: str
    source: str
    """Where it comes from, for people."""
    score: Callable[[Candidates, Candidates], Vector]
    """(the pool by id, the labelled images in it or not) -> (N,) finite scores; the greatest is asked first."""
    repeat: float
    """The share of a step's picks that labelled images may have, so that those still unsure are trained on more often.

    1 as in the paper; with 0 labelled images leave the pool.
    """


def min_max(values: Vector) -> Vector:
    """Values stretched to [0, 1]; 0 everywhere where all are equal."""
    spread = np.ptp(values) if values.size else 0.0
    return (values - values.min()) / spread if spread > 0 else np.zeros_like(values)


def log(values: Matrix) -> Matrix:
    """Natural logarithm of values >= 0, finite for 0: far below that of anything else."""
    logarithm: Matrix = np.log(np.maximum(values, np.finfo(np.float64).tiny))
    return logarithm


def descending(order: Sequence[int]) -> Vector:
    """Scores for a strategy that is an order of rows, not a number for each: N for the first, 1 for the last."""
    scores = np.empty(len(order))
    scores[np.asarray(order, dtype=np.intp)] = np.arange(len(order), 0, -1)
    return scores


def gumbel_noise(images: Sequence[str], columns: int, *, strategy: str, seed: int, version: int) -> Matrix:
    """Standard Gumbel noise (N, columns) that depends on strategy, seed, model version and an image's id alone.

    So an image that comes or goes changes nothing for the others, a ranking that is made again is the same, and no
    strategy draws what another has drawn: compared with each other, each is chance of its own.
    """
    first = [seed, version, int.from_bytes(strategy.encode(), "big")]
    noise = [
        np.random.default_rng([*first, int.from_bytes(image.encode(), "big")]).gumbel(size=columns) for image in images
    ]
    return np.array(noise, dtype=np.float64).reshape(len(images), columns)
