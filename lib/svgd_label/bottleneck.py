"""Features of an image: the spatial mean of every particle's bottleneck, collected while the committee runs."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from svgd_label.svgd import Committee


class Bottleneck:
    """Collects the spatial mean of every particle's bottleneck while the committee runs.

    The bottleneck is the module whose output has the fewest voxels, the last of them in the order of execution.
    """

    def __init__(self, committee: Committee) -> None:
        self.committee = committee
        self.sum: Tensor | None = None
        self.calls = 0
        self.smallest: Tensor | None = None
        self.voxels = 0
        self.handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> "Bottleneck":
        for particle in self.committee.particles:
            for module in particle.modules():
                if next(module.children(), None) is None:
                    self.handles.append(module.register_forward_hook(self._output))
            self.handles.append(particle.register_forward_hook(self._particle))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _output(self, _module: torch.nn.Module, _inputs: object, output: object) -> None:
        if not isinstance(output, Tensor) or len(shape := output.shape) != 5:
            return
        voxels = math.prod(shape[2:])
        if self.smallest is None or voxels <= self.voxels:
            self.smallest, self.voxels = output, voxels

    def _particle(self, _module: torch.nn.Module, _inputs: object, _output: object) -> None:
        assert self.smallest is not None
        pooled = self.smallest.float().mean(dim=(2, 3, 4)).sum(dim=0)
        self.sum = pooled if self.sum is None else self.sum + pooled
        self.calls += self.smallest.shape[0]
        self.smallest = None

    def features(self) -> NDArray[np.float32]:
        """(F,), the mean over particles and windows."""
        assert self.sum is not None, "the committee has not run yet"
        vector: NDArray[np.float32] = (self.sum / self.calls).cpu().numpy()
        return vector
