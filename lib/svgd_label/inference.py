"""Inference: one sliding-window pass in which each window meets all particles, back on the image's own grid."""

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


@dataclass(frozen=True)
class Segmentation:
    """A label map on the image's own grid."""

    labels: NDArray[np.uint8]
    """(X, Y, Z), the task's values."""
    affine: NDArray[np.float64]
    """(4, 4), voxel to RAS millimetres, the image's own."""


def sliding_window(task: Task, predict: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """Applies ``predict`` window by window and stitches.

    Args:
        predict: (B, 1, *window) -> (B, K, *window).
        image: (1, D, H, W) on the task's grid. Smaller than the window, it is padded for the network only.

    Returns:
        (K, D, H, W), without the padding.
    """
    stitched = sliding_window_inference(
        image.unsqueeze(0), roi_size=task.window, sw_batch_size=1, predictor=predict, overlap=0.25, mode="gaussian"
    )
    assert isinstance(stitched, Tensor)
    return stitched[0]


def particle_moments(committee: Committee, x: Tensor) -> Tensor:
    """The committee's running sums on one batch of windows, (B, C + 2, *window); see ``ParticleMoments``."""
    moments = ParticleMoments()
    x = x.contiguous(memory_format=torch.channels_last_3d)
    for particle in committee.particles:
        moments.add(particle(x).softmax(dim=1))
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
        probabilities.argmax(dim=0, keepdim=True).to(torch.float32).cpu(),
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
