"""SVGD as a torch optimizer around another: gradients in, velocities out, the inner optimizer takes the step."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from svgd_label.svgd.committee import flatten
from svgd_label.svgd.kernel import velocity_weights


class SVGD(Optimizer):
    """Replaces the particles' gradients by minus the SVGD velocity and lets ``optimizer`` step along them.

    It shares ``param_groups`` and ``state`` with the wrapped optimizer, so learning-rate schedulers and checkpoints
    work on either. Every ``backward`` must have left in ``.grad`` the gradient of *minus* the particle's
    log-likelihood, as any minimising training loop does.
    docs/method.md: "step" and "prior".

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
        self._gathered: Tensor | None = None
        self._descent: Tensor | None = None
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
        weights, gathered = self._factors()
        return flatten(self._as_parameters(weights @ gathered)).view(len(self.particles), -1)

    def _factors(self) -> tuple[Tensor, Tensor]:
        """Two matrices, (M, 2M) and (2M, P), whose product is the velocity; the next call overwrites the second.

        It stays from step to step: asking the system for so much memory anew took longer than the arithmetic.
        """
        _check_layout(self.particles)
        parameters = [parameter for particle in self.particles for parameter in particle]
        count = len(self.particles)
        if self._gathered is None:
            self._gathered = parameters[0].new_empty(2 * count, sum(p.numel() for p in self.particles[0]))
        gradients, particles = self._gathered.chunk(2)
        torch.cat([_in_memory(p, _gradient(p)) for p in parameters], out=gradients.view(-1))
        torch.cat([_in_memory(p, p) for p in parameters], out=particles.view(-1))
        if self.prior_std is not None:
            gradients.add_(particles, alpha=1 / self.prior_std**2)
        particles[1:] -= particles[0]  # shifted so that the first is zero, as in phi
        particles[0] = 0
        weights = velocity_weights(particles, bandwidth=self.bandwidth)
        weights[:, :count].neg_()  # the gradients are those of minus the log-likelihood
        return weights, self._gathered

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
        weights, gathered = self._factors()
        if self._descent is None:
            self._descent = torch.empty_like(gathered[: len(self.particles)])
        torch.mm(-weights, gathered, out=self._descent)
        parameters = (parameter for particle in self.particles for parameter in particle)
        for parameter, values in zip(parameters, self._as_parameters(self._descent), strict=True):
            parameter.grad = values
        self.optimizer.step()
        return loss

    def _as_parameters(self, values: Tensor) -> list[Tensor]:
        """Views of (M, P) values in the order of memory, each shaped and laid out as its parameter."""
        parameters = [parameter for particle in self.particles for parameter in particle]
        pieces = values.view(-1).split([parameter.numel() for parameter in parameters])
        return [
            torch.as_strided(piece, parameter.shape, parameter.stride(), piece.storage_offset())
            for parameter, piece in zip(parameters, pieces, strict=True)
        ]


def _check_layout(particles: Sequence[Sequence[nn.Parameter]]) -> None:
    """In a few microseconds, so at every step: a network may be moved to another memory format in between."""
    if len({tuple(parameter.stride() for parameter in particle) for particle in particles}) != 1:
        raise ValueError("SVGD needs particles in one memory format: move the whole committee to it, not one particle")
    # Only of a dense tensor does torch keep the strides.
    if any(torch.empty_like(p, device="meta").stride() != p.stride() for p in particles[0]):
        raise ValueError("SVGD needs dense parameters, not views that leave out or repeat parts of their memory")


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _in_memory(parameter: nn.Parameter, values: Tensor) -> Tensor:
    """``values``, shaped as the parameter, as one vector in the order in which the parameter lies in memory.

    The order is the same for all particles, and that is all the kernel asks for: nothing is moved about, as flattening
    channels-last weights by their indices would, which took longer than the kernel itself.
    """
    if values.stride() != parameter.stride():
        values = torch.empty_like(parameter).copy_(values)
    return torch.as_strided(values, (values.numel(),), (1,), values.storage_offset())
