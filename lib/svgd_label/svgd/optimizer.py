"""SVGD as a torch optimizer around another: gradients in, velocities out, the inner optimizer takes the step."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from svgd_label.svgd.committee import flatten
from svgd_label.svgd.kernel import phi


class SVGD(Optimizer):
    """Replaces the particles' gradients by minus the SVGD velocity and lets ``optimizer`` step along them.

    It shares ``param_groups`` and ``state`` with the wrapped optimizer, so learning-rate schedulers and checkpoints
    work on either. Every ``backward`` must have left in ``.grad`` the gradient of *minus* the particle's
    log-likelihood, as any minimising training loop does.

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
        """The velocity (M, P) for the parameters and gradients as they stand."""
        particles = torch.stack([flatten(particle) for particle in self.particles])
        scores = -torch.stack(
            [flatten([torch.zeros_like(p) if p.grad is None else p.grad for p in ps]) for ps in self.particles]
        )
        if self.prior_std is not None:
            scores -= particles / self.prior_std**2
        return phi(particles, scores, bandwidth=self.bandwidth)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One SVGD step. ``closure``, where given, recomputes the gradients and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for parameters, velocity in zip(self.particles, self.velocity(), strict=True):
            gradients = velocity.neg().split([p.numel() for p in parameters])
            for parameter, gradient in zip(parameters, gradients, strict=True):
                # Memory layout of the parameter, not of the vector: channels-last weights keep their strides.
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
                parameter.grad.copy_(gradient.view(parameter.shape))
        self.optimizer.step()
        return loss
