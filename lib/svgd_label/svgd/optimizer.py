"""SVGD as a torch optimizer around another: gradients in, velocities out, the inner optimizer takes the step."""

import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from svgd_label.svgd.committee import flatten
from svgd_label.svgd.kernel import velocity_weights


class SVGD(Optimizer):
    """Replaces the particles' gradients by minus the SVGD velocity and lets ``optimizer`` step along them.

    It shares ``param_groups`` and ``state`` with the wrapped optimizer, so learning-rate schedulers and checkpoints
    work on either. Every ``backward`` must have left in ``.grad`` the gradient of *minus* the particle's
    log-likelihood, as any minimising training loop does.
    docs/method.md: "step" and "prior".

    As soon as ``backward`` has made a gradient, it is copied to its place in one matrix, of which ``.grad`` is a view
    then. This way the gradients of a single particle, and not of all, are asked of the system and given back at every
    step, which took as long in page faults as the kernel, the velocity and the inner optimizer's step together.

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
        sizes = [parameter.numel() for parameter in self.particles[0]]
        # Gradients, particles and minus the velocity, each particle a row in the order in which its parameters lie in
        # memory. That order is the same for all particles, and that is all the kernel asks for: nothing is moved about,
        # as flattening channels-last weights by their indices would, which took longer than the kernel itself.
        self._matrices = self.particles[0][0].detach().new_empty(3, len(self.particles), sum(sizes))
        self._gradients, self._descent = (
            self._matrices[number].view(-1).split(sizes * len(self.particles)) for number in (0, 2)
        )
        handles = [
            parameter.register_post_accumulate_grad_hook(partial(_gather, piece))
            for parameter, piece in zip(self._parameters(), self._gradients, strict=True)
        ]
        weakref.finalize(self, _remove, handles)
        self._share()

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
        values = [_shaped(piece, parameter) for parameter, piece in zip(self._parameters(), self._descent, strict=True)]
        return -flatten(values).view(len(self.particles), -1)

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for particle in self.particles for parameter in particle]

    def _descend(self) -> None:
        """Writes minus the velocity to its matrix."""
        _check_layout(self.particles)
        count = len(self.particles)
        _, particles, descent = self._matrices
        for parameter, piece in zip(self._parameters(), self._gradients, strict=True):
            if parameter.grad is None:
                piece.zero_()
            else:
                _gather(piece, parameter)
        torch.cat([torch.as_strided(p, (p.numel(),), (1,)) for p in self._parameters()], out=particles.view(-1))
        rows = self._matrices[:2].flatten(0, 1)
        if self.prior_std is not None:
            rows = rows.clone()  # the parameters' gradients stay as they are
            rows[:count].add_(rows[count:], alpha=1 / self.prior_std**2)
        particles = rows[count:]
        particles[1:] -= particles[0]  # shifted so that the first is zero, as in phi
        particles[0] = 0
        weights = velocity_weights(particles, bandwidth=self.bandwidth)
        weights[:, count:].neg_()  # the gradients are those of minus the log-likelihood
        # Of so flat a matrix the product takes half as long again in one piece.
        for piece, result in zip(rows.split(2**16, dim=1), descent.split(2**16, dim=1), strict=True):
            torch.mm(weights, piece, out=result)

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
        for parameter, piece in zip(self._parameters(), self._descent, strict=True):
            parameter.grad = _shaped(piece, parameter)
        self.optimizer.step()
        return loss


def _shaped(piece: Tensor, parameter: nn.Parameter) -> Tensor:
    """A view of consecutive values, shaped and laid out as the parameter."""
    return torch.as_strided(piece, parameter.shape, parameter.stride(), piece.storage_offset())


def _gather(piece: Tensor, parameter: nn.Parameter) -> None:
    """Copies the gradient to its piece of the matrix, unless it is there, and makes ``.grad`` a view of that."""
    if parameter.grad is not None and parameter.grad.data_ptr() != piece.data_ptr():
        parameter.grad = _shaped(piece, parameter).copy_(parameter.grad)


def _remove(handles: Iterable[RemovableHandle]) -> None:
    """Once the optimizer is gone, nothing may be left at the parameters that holds its memory."""
    for handle in handles:
        handle.remove()


def _check_layout(particles: Sequence[Sequence[nn.Parameter]]) -> None:
    """In a few microseconds, so at every step: a network may be moved to another memory format in between."""
    if len({tuple(parameter.stride() for parameter in particle) for particle in particles}) != 1:
        raise ValueError("SVGD needs particles in one memory format: move the whole committee to it, not one particle")
    # Only of a dense tensor does torch keep the strides.
    if any(torch.empty_like(p, device="meta").stride() != p.stride() for p in particles[0]):
        raise ValueError("SVGD needs dense parameters, not views that leave out or repeat parts of their memory")
