"""Inference: one sliding-window pass in which each window meets all particles, back on the image's own grid."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from monai.metrics import DiceMetric
from monai.transforms.utils import convert_applied_interp_mode
from numpy.typing import NDArray
from torch import Tensor

from svgd_label.images import load_volume
from svgd_label.svgd import Committee
from svgd_label.tasks import Task
from svgd_label.tasks.transforms import load_label, normalise, on_grid, to_grid
from svgd_label.uncertainty import ParticleMoments

logger = logging.getLogger(__name__)

OVERLAP = 0.25
"""Of neighbouring windows."""


@dataclass(frozen=True)
class Segmentation:
    """A label map on the image's own grid."""

    labels: NDArray[np.uint8]
    """(X, Y, Z), the task's values."""
    affine: NDArray[np.float64]
    """(4, 4), voxel to RAS millimetres, the image's own."""


def sliding_window(task: Task, predict: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """Applies ``predict`` window by window and stitches; logs every five seconds how far it is.

    Args:
        predict: (B, 1, *window) -> (B, K, *window).
        image: (1, D, H, W) on the task's grid. Smaller than the window, it is padded for the network only.

    Returns:
        (K, D, H, W), without the padding.
    """
    windows = count_windows(task, image.shape[1:])
    done, logged = 0, time.monotonic()

    def counted(x: Tensor) -> Tensor:
        nonlocal done, logged
        if time.monotonic() - logged >= 5:
            logged = time.monotonic()
            logger.info("%d of %d windows", done, windows)
        done += 1
        return predict(x)

    stitched = sliding_window_inference(
        image.unsqueeze(0), roi_size=task.window, sw_batch_size=1, predictor=counted, overlap=OVERLAP, mode="gaussian"
    )
    assert isinstance(stitched, Tensor)
    return stitched[0]


def count_windows(task: Task, shape: Sequence[int]) -> int:
    """How many windows cover an image of this shape (D, H, W)."""
    steps = [int(side * (1 - OVERLAP)) for side in task.window]
    return math.prod(
        1 + math.ceil(max(0, size - side) / step) for size, side, step in zip(shape, task.window, steps, strict=True)
    )


def particle_moments(committee: Committee, x: Tensor) -> Tensor:
    """The committee's running sums on one batch of windows, (B, C + 2, *window); see ``ParticleMoments``."""
    moments = ParticleMoments()
    x = x.contiguous(memory_format=torch.channels_last_3d)
    for probabilities in committee.probabilities(x):
        moments.add(probabilities)
    return moments.stacked()


@torch.inference_mode()
def segment(task: Task, committee: Committee, path: str) -> Segmentation:
    """The particle-averaged segmentation of one image on its own grid and affine.

    Raises:
        ImageError: the image cannot be used.
    """
    volume = load_volume(path)
    grid = to_grid(task)
    moved = on_grid(task, volume, grid)
    device = next(committee.parameters()).device
    image = normalise(task, moved).as_tensor().to(device)
    committee.eval()
    probabilities = sliding_window(task, lambda x: committee(x.contiguous(memory_format=torch.channels_last_3d)), image)
    # Argmax before going back: one label map is moved, not C probability volumes.
    label_map = MetaTensor(
        probabilities.max(dim=0, keepdim=True).indices.to(torch.float32).cpu(),
        affine=moved.affine,
        applied_operations=convert_applied_interp_mode(moved.applied_operations, mode="nearest", align_corners=None),
    )
    restored = grid.inverse(label_map)
    labels = restored[0].as_tensor().round().to(torch.uint8).numpy()
    assert labels.shape == tuple(volume.shape[1:])
    return Segmentation(labels=labels, affine=np.asarray(volume.affine, dtype=np.float64))


def dice(task: Task, labels: NDArray[np.uint8], reference: NDArray[np.uint8]) -> list[float]:
    """Dice of each structure between two label maps (X, Y, Z); NaN for one that the reference does not hold."""

    def one_hot(values: NDArray[np.uint8]) -> Tensor:
        indices = torch.from_numpy(np.ascontiguousarray(values)).long()
        return torch.nn.functional.one_hot(indices, task.classes).movedim(-1, 0).unsqueeze(0)

    metric = DiceMetric(include_background=False, reduction="none")
    scores = torch.as_tensor(metric(one_hot(labels), one_hot(reference)))
    result: list[float] = scores[0].tolist()
    return result


def evaluate(task: Task, committee: Committee, cases: Sequence[tuple[str, str]]) -> list[list[float]]:
    """Dice per structure of every (image, label) pair of files, each on the image's own grid."""
    return [
        dice(task, segment(task, committee, image).labels, load_label(task, image, label)[0].numpy())
        for image, label in cases
    ]
