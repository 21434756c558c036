"""Scoring of one image: the committee's uncertainty, its bottleneck features, the grey-level codes."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from monai.transforms import ResizeWithPadOrCrop
from numpy.typing import NDArray
from torch import Tensor

from svgd_label import similarity
from svgd_label.bottleneck import Bottleneck
from svgd_label.images import ImageError, geometry
from svgd_label.inference import particle_moments, sliding_window
from svgd_label.pool import ScoreRow
from svgd_label.svgd import Committee
from svgd_label.tasks import Task
from svgd_label.tasks.transforms import prepare_image
from svgd_label.uncertainty import maps


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image as scoring takes it."""

    id: str
    image: Tensor
    """(1, D, H, W) in [0, 1] on the task's grid, never padded."""
    codes: NDArray[np.uint8]
    """Grey-level codes on the grid for mutual information."""


def prepare(task: Task, image: str, path: str) -> PreparedImage:
    """Reads and normalises one image and codes it for mutual information.

    Raises:
        ImageError: it cannot be used, or is saturated: 99 % of its own voxels have one grey-level code, so that its
            mutual information would be 0 with everything and put it on top of every ranking.
    """
    prepared = prepare_image(task, path).as_tensor()
    if similarity.saturated(similarity.codes(prepared.numpy(), bins=similarity.BINS)):
        raise ImageError(
            f"{image}: after normalisation 99 % of its voxels have the same grey value, so nothing can be told from it"
        )
    return PreparedImage(image, prepared, mi_codes(task, prepared))


def mi_codes(task: Task, image: Tensor) -> NDArray[np.uint8]:
    """Grey-level codes of a normalised image (1, D, H, W), resampled to ``mi_shape`` or padded to it."""
    if task.mi_grid == "padded":
        grid = torch.as_tensor(ResizeWithPadOrCrop(spatial_size=task.window)(image))
    else:
        grid = torch.nn.functional.interpolate(
            image.unsqueeze(0), size=task.mi_grid, mode="trilinear", align_corners=False
        )
    return similarity.codes(grid.clamp(0, 1).numpy(), bins=task.mi_bins).reshape(mi_shape(task))


def mi_shape(task: Task) -> tuple[int, int, int]:
    """The grid on which two images' grey levels are compared."""
    return task.window if task.mi_grid == "padded" else task.mi_grid


def bytes_to_prepare(path: str) -> int:
    """The memory that ``prepare`` takes; 32 bytes a voxel of the file were measured.

    Raises:
        ImageError: the file's header shows that it cannot be used.
    """
    return math.prod(geometry(path)[0]) * 40


def bytes_to_score(task: Task, prepared: PreparedImage) -> int:
    """The memory that ``score`` takes; 61 bytes a voxel were measured for three classes, 168 for eleven."""
    return prepared.image.numel() * 4 * (4 * task.classes + 6)


@torch.inference_mode()
def score(task: Task, committee: Committee, prepared: PreparedImage) -> ScoreRow:
    """The committee's uncertainty on one image, aggregated over its own voxels."""
    device = next(committee.parameters()).device
    if committee.training:  # asking all modules of all particles takes milliseconds
        committee.eval()
    with Bottleneck(committee) as bottleneck:
        stacked = sliding_window(task, lambda x: particle_moments(committee, x), prepared.image.to(device))
    found = maps(stacked.unsqueeze(0))
    reduce: Callable[[Tensor], float] = (
        (lambda values: float(values.double().mean()))
        if task.aggregate == "mean"
        else (lambda values: float(values.double().sum()))
    )
    mean = found.mean[0]
    volumes = torch.bincount(mean.max(dim=0).indices.flatten(), minlength=task.classes).tolist()  # argmax is slower
    return ScoreRow(
        image=prepared.id,
        entropy=reduce(found.entropy),
        expected_entropy=reduce(found.expected_entropy),
        jsd=reduce(found.jsd),
        variance=reduce(found.variance),
        details={
            "volume_voxels": dict(zip(task.labels, volumes[1:], strict=True)),
            "class_entropy": {
                name: reduce(mean[value] * found.entropy[0]) for value, name in enumerate(task.labels, start=1)
            },
        },
        features=bottleneck.features(),
    )
