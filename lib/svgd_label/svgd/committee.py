"""The committee: M particles, copies of one network, as a single module whose output is their mean."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from svgd_label.svgd.convolution import FastConvolutions
from svgd_label.svgd.kernel import pairwise_distances


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """One vector of all elements; unlike torch's ``parameters_to_vector`` it takes channels-last tensors too."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


class Committee(nn.Module):
    """M networks of one architecture; ``particles[i]`` is one of them.

    ``forward`` gives the mean probabilities, so inferers, evaluators and metrics that expect one network work as
    they are. Nothing that takes its output may apply softmax again.
    """

    def __init__(self, particles: Iterable[nn.Module]) -> None:
        super().__init__()
        self.particles = nn.ModuleList(particles)
        if not self.particles:
            raise ValueError("a committee needs at least one particle")

    @classmethod
    def build(cls, network: Callable[[], nn.Module], *, size: int, seed: int) -> "Committee":
        """``size`` independent initialisations of ``network``, the same for the same seed, anywhere.

        The caller's random state is left as it was.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(network() for _ in range(size))

    def __len__(self) -> int:
        return len(self.particles)

    def logits(self, x: Tensor) -> Tensor:
        """All particles' logits, (M, B, C, *spatial), from (B, 1, *spatial). For inputs small enough to hold M of."""
        return torch.stack([particle(x) for particle in self.particles])

    def forward(self, x: Tensor) -> Tensor:
        """Mean probabilities (B, C, *spatial) from (B, 1, *spatial), by a running sum: memory does not grow with M."""
        probabilities = self.probabilities(x)
        total = next(probabilities).clone()
        for particle in probabilities:
            total += particle
        total /= len(self)
        return total

    def probabilities(self, x: Tensor) -> Iterator[Tensor]:
        """One particle's probabilities after another, each (B, C, *spatial), from (B, 1, *spatial)."""
        for particle in self.particles:
            with FastConvolutions():
                logits = particle(x)
            yield logits.float().softmax(dim=1)

    def trainable(self) -> list[list[nn.Parameter]]:
        """For each particle its trainable parameters, in one order."""
        return [[p for p in particle.parameters() if p.requires_grad] for particle in self.particles]

    @torch.no_grad()
    def matrix(self) -> Tensor:
        """The particles as rows, (M, P): all trainable parameters of each, flattened."""
        return torch.stack([flatten(p) for p in self.trainable()])

    def cpu_state(self) -> dict[str, Tensor]:
        """The state dictionary as contiguous tensors on the CPU, to be written."""
        return {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}

    def mean_distance(self) -> float:
        """Mean Euclidean distance between different particles in weight space; 0 for a single one."""
        return float(pairwise_distances(self.matrix()).mean()) if len(self) > 1 else 0.0
