"""The bare forward passes that inference and scoring are compared with."""

from collections.abc import Callable, Sequence

import torch

from svgd_label.inference import sliding_window
from svgd_label.svgd import Committee
from svgd_label.svgd.convolution import FastConvolutions
from svgd_label.tasks import Task


def bare_passes(committee: Committee, inputs: Sequence[torch.Tensor], *, as_ours: bool) -> Callable[[], None]:
    """Every particle on every input (1, 1, *window), its output thrown away.

    Args:
        as_ours: with the convolutions that ours runs with; else as torch chooses them by itself.
    """
    device = next(committee.parameters()).device

    @torch.inference_mode()
    def passes() -> None:
        for given in inputs:
            x = given.to(device, memory_format=torch.channels_last_3d)
            for particle in committee.particles:
                if as_ours:
                    with FastConvolutions():
                        particle(x)
                else:
                    particle(x)

    return passes


def windows_of(task: Task, image: torch.Tensor) -> list[torch.Tensor]:
    """What the network gets of an image (1, D, H, W) on the task's grid: windows (1, 1, *window)."""
    windows: list[torch.Tensor] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        windows.append(x.clone())
        return x

    sliding_window(task, keep, image)
    return windows
