"""SVGD as a torch optimizer around another: gradients in, velocities out, the inner optimizer takes the step."""

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from svgd_label.svgd.committee import flatten
from svgd_label.svgd.kernel import velocity_weights

CACHE_LINE = 16
"""Of 64 bytes, in float32."""


class SVGD(Optimizer):
    """Replaces the particles' gradients by minus the SVGD velocity and lets ``optimizer`` step along them.

    It shares ``param_groups`` and ``state`` with the wrapped optimizer, so learning-rate schedulers and checkpoints
    work on either. Every ``backward`` must have left in ``.grad`` the gradient of *minus* the particle's
    log-likelihood, as any minimising training loop does.
    docs/method.md: "step" and "prior".

    As soon as ``backward`` has made a gradient, it is copied to its place in one matrix, of which ``.grad`` is a view
    then: the next ``backward`` overwrites it, and a graph of it (``create_graph``) is not kept. On a CPU the gradients
    of a single particle, and not of all, are asked of the system and given back at every step, which took as long in
    page faults as the kernel, the velocity and the inner optimizer's step together.

    Args:
        optimizer: any torch optimizer over the parameters of all particles.
        particles: for each particle its trainable parameters, in one order (``Committee.trainable()``).
        bandwidth: h of the kernel; None takes the median heuristic at every step.
        prior_std: standard deviation of a zero-mean Gaussian prior on every parameter; None means no prior.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        particles: Sequence[Sequence[nn.Parameter]],
        *,
        bandwidth: float | None = None,
        prior_std: float | None = None,
    ) -> None:
        if len({tuple(p.shape for p in particle) for particle in particles}) != 1:
            raise ValueError("SVGD needs particles of one architecture: their parameters' shapes differ")
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self.optimizer = optimizer
        self.particles = [list(particle) for particle in particles]
        self.bandwidth = bandwidth
        self.prior_std = prior_std
        self._handles: list[RemovableHandle] = []
        self._allocate()
        weakref.finalize(self, _remove, self._handles)
        self._share()

    def _allocate(self) -> None:
        """Gradients and particles, (2M, P), and minus the velocity, (M, P); hooks that gather the gradients.

        Each particle is a row in the order in which its parameters lie in memory. That order is the same for all
        particles, and that is all the kernel asks for: nothing is moved about, as flattening channels-last weights by
        their indices would, which took longer than the kernel itself. Zeros fill each row up to whole cache lines: of
        rows that begin anywhere the product takes nearly twice as long.
        """
        _remove(self._handles)
        layout = _layout(self.particles)
        if len({(parameter.device, parameter.dtype) for parameter in self._parameters()}) > 1:
            raise ValueError("SVGD needs particles of one type on one device: their distance is over all parameters")
        # Only of a dense tensor does torch keep the strides.
        if any(torch.empty_like(p, device="meta").stride() != p.stride() for p in self.particles[0]):
            raise ValueError("SVGD needs dense parameters, not views that leave out or repeat parts of their memory")
        count, sizes = len(self.particles), [parameter.numel() for parameter in self.particles[0]]
        self._filling = self.particles[0][0].detach().new_zeros(-sum(sizes) % CACHE_LINE)
        sizes.append(self._filling.numel())
        self._rows = self._filling.new_zeros(2 * count, sum(sizes))
        self._descent = torch.zeros_like(self._rows[:count])
        self._gradients, self._descents = (
            [
                torch.as_strided(piece, parameter.shape, parameter.stride(), piece.storage_offset())
                for row, particle in zip(matrix, self.particles, strict=True)
                for piece, parameter in zip(row.split(sizes), particle, strict=False)
            ]
            for matrix in (self._rows[:count], self._descent)
        )
        self._handles += [
            parameter.register_post_accumulate_grad_hook(partial(_gather, view))
            for parameter, view in zip(self._parameters(), self._gradients, strict=True)
        ]
        self._laid_out = layout

    def _share(self) -> None:
        self.param_groups = self.optimizer.param_groups
        self.state = self.optimizer.state

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state: SVGD itself has none."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads into the wrapped optimizer and goes on sharing what it made of it."""
        self.optimizer.load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def velocity(self) -> Tensor:
        """The velocity (M, P) for the parameters and gradients as they stand, in the order of ``Committee.matrix``.

        Raises:
            ValueError: as for ``step``.
        """
        self._descend()
        return -flatten(self._descents).view(len(self.particles), -1)

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for particle in self.particles for parameter in particle]

    def _descend(self) -> None:
        """Writes minus the velocity to its matrix."""
        if _layout(self.particles) != self._laid_out:  # the committee was moved
            self._allocate()
        count = len(self.particles)
        for parameter, view in zip(self._parameters(), self._gradients, strict=True):
            if parameter.grad is None:
                view.zero_()
            else:
                _gather(view, parameter)
        values = [
            torch.as_strided(p, (p.numel(),), (1,)) for particle in self.particles for p in (*particle, self._filling)
        ]
        torch.cat(values, out=self._rows[count:].view(-1))
        weights = velocity_weights(self._rows[count:], bandwidth=self.bandwidth)
        weights[:, count:].neg_()  # the gradients are those of minus the log-likelihood
        # In pieces that stay in the cache: of so flat a matrix the product takes half as long again in one.
        for piece, result in zip(self._rows.split(2**16, dim=1), self._descent.split(2**16, dim=1), strict=True):
            particles = piece[count:]
            prior = None if self.prior_std is None else weights[:, :count] @ particles / self.prior_std**2
            particles[1:] -= particles[0]  # shifted so that the first is zero, as in phi
            particles[0] = 0
            torch.mm(weights, piece, out=result)
            if prior is not None:
                result += prior

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One SVGD step. ``closure``, where given, recomputes the gradients and returns the loss.

        Raises:
            ValueError: the particles' parameters do not lie alike in memory, or one is not dense.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._descend()
        for parameter, view in zip(self._parameters(), self._descents, strict=True):
            parameter.grad = view
        self.optimizer.step()
        return loss


def _gather(view: Tensor, parameter: nn.Parameter) -> None:
    """Copies the gradient to its view of the matrix, unless it is there, and makes that the ``.grad``."""
    gradient = parameter.grad
    if gradient is None or gradient is view or gradient.dtype is not view.dtype or gradient.device != view.device:
        return
    if gradient.data_ptr() == view.data_ptr():
        gradient = gradient.clone()
    parameter.grad = view.copy_(gradient.detach())


def _remove(handles: list[RemovableHandle]) -> None:
    """Takes the hooks off the parameters: the gradients of a committee that is trained again are gathered once."""
    for handle in handles:
        handle.remove()
    handles.clear()


def _layout(particles: Sequence[Sequence[nn.Parameter]]) -> tuple[Any, ...]:
    """Where and how the parameters lie; in a few microseconds, so that a committee may be moved between two steps.

    Raises:
        ValueError: the particles' lie differently.
    """
    layout, *others = [tuple(parameter.stride() for parameter in particle) for particle in particles]
    if any(other != layout for other in others):
        raise ValueError("SVGD needs particles in one memory format: move the whole committee to it, not one particle")
    first = particles[0][0]
    return first.device, first.dtype, layout
