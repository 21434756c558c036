"""Features of an image: the spatial mean of every particle's bottleneck, collected while the committee runs."""

import math
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from svgd_label.svgd import Committee


class Bottleneck:
    """Collects the spatial mean of every particle's bottleneck while the committee runs.

    The bottleneck is the module whose output has the fewest voxels, the last of them in the order of execution. It is
    looked for in the first run of the first particle, which is the first to run: hooks on all modules of all particles
    took some hundredths of the time.
    """

    def __init__(self, committee: Committee) -> None:
        self.committee = committee
        self.sum: Tensor | None = None
        self.calls = 0
        self.smallest: Tensor | None = None
        self.voxels = 0
        self.name: str | None = None
        self.handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> "Bottleneck":
        first = self.committee.particles[0]
        leaves = [name for name, module in first.named_modules() if next(module.children(), None) is None]
        self._hook([first], leaves, self._first_particle)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def _hook(self, particles: Iterable[nn.Module], names: Iterable[str], end: Callable[..., None]) -> None:
        for particle in particles:
            for name in names:
                hook = partial(self._output, name)
                self.handles.append(particle.get_submodule(name).register_forward_hook(hook))
            self.handles.append(particle.register_forward_hook(end))

    def _output(self, name: str, _module: nn.Module, _inputs: object, output: object) -> None:
        if not isinstance(output, Tensor) or len(shape := output.shape) != 5:
            return
        voxels = math.prod(shape[2:])
        if self.smallest is None or voxels <= self.voxels:
            self.smallest, self.voxels, self.name = output, voxels, name

    def _first_particle(self, *_: object) -> None:
        self._particle()
        assert self.name is not None
        self.__exit__()
        self._hook(self.committee.particles, [self.name], self._particle)

    def _particle(self, *_: object) -> None:
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
