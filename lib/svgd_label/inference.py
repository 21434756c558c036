"""Inference: one sliding-window pass in which each window meets all particles, back on the image's own grid."""

import itertools
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from monai.metrics import DiceMetric
from monai.transforms.utils import convert_applied_interp_mode
from numpy.typing import NDArray
from torch import Tensor

from svgd_label.bands import bands
from svgd_label.bottleneck import Bottleneck
from svgd_label.images import load_volume
from svgd_label.svgd import Committee
from svgd_label.tasks import Task
from svgd_label.tasks.transforms import check_room, load_label, normalise, on_grid, to_grid
from svgd_label.uncertainty import ParticleMoments, entropy

logger = logging.getLogger(__name__)

OVERLAP = 0.25
"""Of neighbouring windows."""
LARGER = 1.25
"""A window may grow to this times its size, side by side, to take a whole image in one piece."""
SLAB = 32
"""So many layers of a grid are turned into labels at once."""


@dataclass(frozen=True)
class Volume:
    """How much of an image one structure fills, in ml."""

    ml: float
    """In the label map."""
    lowest: float
    """The smallest of the particles' own segmentations."""
    highest: float
    """The largest."""


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What a committee says of an image: a label map on the image's own grid, and how sure it is of it."""

    labels: NDArray[np.uint8]
    """(X, Y, Z), the task's values."""
    bands: NDArray[np.uint8]
    """(X, Y, Z), the values of ``bands.BANDS``."""
    affine: NDArray[np.float64]
    """(4, 4), voxel to RAS millimetres, the image's own."""
    volumes: dict[str, Volume]
    """Of each structure."""
    features: NDArray[np.float32]
    """(F,), as scoring stores them."""


def sliding_window(task: Task, predict: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """Applies ``predict`` window by window and stitches; logs every five seconds how far it is.

    Args:
        predict: (B, 1, *window) -> (B, K, *window).
        image: (1, D, H, W) on the task's grid. Smaller than the window, it is padded for the network only.

    Returns:
        (K, D, H, W), without the padding.
    """
    window, parts = window_of(task, image.shape[1:]), cores(task, image.shape[1:])
    if len(parts) == 1:
        (core,) = parts
        padding = [(part.start, side - part.stop) for part, side in zip(core, window, strict=True)]
        padded = torch.nn.functional.pad(image.unsqueeze(0), [n for pair in reversed(padding) for n in pair])
        return predict(padded)[0][(slice(None), *core)]
    done, logged = 0, time.monotonic()

    def counted(x: Tensor) -> Tensor:
        nonlocal done, logged
        if time.monotonic() - logged >= 5:
            logged = time.monotonic()
            logger.info("%d of %d windows", done, len(parts))
        done += 1
        return predict(x)

    stitched = sliding_window_inference(
        image.unsqueeze(0), roi_size=window, sw_batch_size=1, predictor=counted, overlap=OVERLAP, mode="gaussian"
    )
    assert isinstance(stitched, Tensor)
    return stitched[0]


def window_of(task: Task, shape: Sequence[int]) -> tuple[int, int, int]:
    """The window with which an image of this shape (D, H, W) is predicted.

    The task's, or one that holds the whole image where that is little larger than the task's and the network takes it:
    two windows that share nearly all of their voxels cost twice as much and leave a seam.
    """
    if all(size <= side for size, side in zip(shape, task.window, strict=True)):
        return task.window
    for multiple in (4, 8, 16, 32):
        x, y, z = (
            side + math.ceil(max(0, size - side) / multiple) * multiple
            for size, side in zip(shape, task.window, strict=True)
        )
        larger = any(a > LARGER * b for a, b in zip((x, y, z), task.window, strict=True))
        if not larger and task.takes((x, y, z)):
            return x, y, z
    return task.window


def cores(task: Task, shape: Sequence[int]) -> list[tuple[slice, ...]]:
    """The part of each window, in its own voxels, that lies nearer to its centre than to any other window's.

    The windows that cover an image of this shape (D, H, W), in the order in which they are predicted. Each of its
    voxels lies in one core, the padding in none: what is counted there is counted once.
    """
    axes = []
    for size, side in zip(shape, window_of(task, shape), strict=True):
        padding = max(0, side - size) // 2
        step = int(side * (1 - OVERLAP)) if size > side else side
        starts = [min(start, max(0, size - side)) for start in range(0, max(1, size - side + step), step)]
        middles = [(before + after + side) // 2 for before, after in itertools.pairwise(starts)]
        edges = itertools.pairwise([0, *middles, size])
        axes.append(
            [slice(a - start + padding, b - start + padding) for start, (a, b) in zip(starts, edges, strict=True)]
        )
    return list(itertools.product(*axes))


def particle_moments(committee: Committee, x: Tensor) -> Tensor:
    """What the committee thinks of one batch of windows, (B, C + 3, *window); see ``ParticleMoments.stacked``."""
    moments = ParticleMoments()
    for probabilities in committee.probabilities(_channels_last(x)):
        moments.add(probabilities)
    return moments.stacked()


@dataclass(frozen=True, eq=False)
class Prediction:
    """What one pass over an image on the task's grid (D, H, W) gives."""

    probabilities: Tensor
    """(C, D, H, W), the particles' mean."""
    voxels: Tensor
    """(M, C): how many voxels each particle by itself gives to each class."""
    features: NDArray[np.float32]
    """(F,), the mean bottleneck over particles and windows."""


@torch.inference_mode()
def predict(task: Task, committee: Committee, image: Tensor) -> Prediction:
    """One sliding-window pass over an image (1, D, H, W) on the task's grid; no volume of it grows with M.

    docs/method.md: "spread of a volume".
    """
    voxels = torch.zeros(len(committee), task.classes, dtype=torch.long, device=image.device)
    remaining = iter(cores(task, image.shape[1:]))

    def mean(x: Tensor) -> Tensor:
        core = next(remaining)
        total: Tensor | None = None
        for particle, probabilities in enumerate(committee.probabilities(_channels_last(x))):
            # A particle's own stitched map would be one volume more for each: in overlaps the nearest window decides.
            own = probabilities[0][(slice(None), *core)].max(dim=0).indices  # argmax is slower
            voxels[particle] += torch.bincount(own.flatten(), minlength=task.classes)
            total = probabilities if total is None else total.add_(probabilities)
        assert total is not None
        return total / len(committee)

    committee.eval()
    with Bottleneck(committee) as bottleneck:
        probabilities = sliding_window(task, mean, image)
    return Prediction(probabilities=probabilities, voxels=voxels, features=bottleneck.features())


@torch.inference_mode()
def segment(task: Task, committee: Committee, path: str) -> Segmentation:
    """The particle-averaged segmentation of one image on its own grid and affine, and where it is in doubt.

    Raises:
        ImageError: the image cannot be used.
    """
    volume = load_volume(path)
    grid = to_grid(task)
    moved = on_grid(task, volume, grid)
    image = normalise(task, moved).as_tensor().to(next(committee.parameters()).device)
    if task.spacing is not None:
        check_room(Path(path).name, volume.shape[1:], 40, grid="its own")  # for the way back; measured: 36
    if image.device.type == "cpu":
        check_room(Path(path).name, image.shape[1:], 4 * (2 * task.classes + 4))  # measured: 38 bytes for three classes
    prediction = predict(task, committee, image)
    # Before going back, and both in one: a single map is moved, not the probabilities.
    codes = torch.cat([_codes(task, slab) for slab in prediction.probabilities.split(SLAB, dim=1)])
    label_map = MetaTensor(
        codes.unsqueeze(0).cpu(),
        affine=moved.affine,
        applied_operations=convert_applied_interp_mode(moved.applied_operations, mode="nearest", align_corners=None),
    )
    restored = grid.inverse(label_map)[0].as_tensor().round().to(torch.int16).numpy()
    assert restored.shape == tuple(volume.shape[1:])
    labels = (restored % task.classes).astype(np.uint8)
    affine = np.asarray(volume.affine, dtype=np.float64)
    return Segmentation(
        labels=labels,
        bands=(restored // task.classes).astype(np.uint8),
        affine=affine,
        volumes=_volumes(task, labels, affine, codes, prediction.voxels, np.asarray(moved.affine)),
        features=prediction.features,
    )


def _codes(task: Task, probabilities: Tensor) -> Tensor:
    """(D, H, W): class + number of classes * band, as float32, which the way back takes."""
    codes = probabilities.max(dim=0).indices + task.classes * bands(entropy(probabilities, dim=0))
    return codes.to(torch.float32)


def _volumes(
    task: Task,
    labels: NDArray[np.uint8],
    affine: NDArray[np.float64],
    codes: Tensor,
    voxels: Tensor,
    grid: NDArray[np.float64],
) -> dict[str, Volume]:
    """From the label map on the image's own grid; codes (D, H, W) and the particles' counts (M, C) on the task's."""
    own, nominal = (abs(np.linalg.det(a[:3, :3])) / 1000 for a in (affine, grid))
    mean = torch.zeros(task.classes, dtype=torch.long, device=codes.device)
    for slab in codes.split(SLAB):
        mean += torch.bincount(slab.flatten().int() % task.classes, minlength=task.classes)
    # A grid ends at the centres of its outer voxels: what reaches the image's edge is cut short there, or goes beyond.
    limits = sorted((nominal, labels.size * own / codes.numel()))
    found = {}
    for value, name in enumerate(task.labels, start=1):
        ml, on_grid = float(np.count_nonzero(labels == value) * own), int(mean[value])
        each = float(np.clip(ml / on_grid, *limits)) if on_grid else nominal
        counts = voxels[:, value]
        found[name] = Volume(ml=ml, lowest=int(counts.min()) * each, highest=int(counts.max()) * each)
    return found


def _channels_last(x: Tensor) -> Tensor:
    """Measured faster than contiguous tensors on a CPU."""
    return x.contiguous(memory_format=torch.channels_last_3d)


def dice(task: Task, labels: NDArray[np.uint8], reference: NDArray[np.uint8]) -> list[float]:
    """Dice of each structure between two label maps (X, Y, Z); NaN for one that the reference does not hold."""
    metric = DiceMetric(include_background=False, reduction="none", num_classes=task.classes)
    scores = torch.as_tensor(
        metric(*(torch.from_numpy(np.ascontiguousarray(x))[None, None] for x in (labels, reference)))
    )
    result: list[float] = scores[0].tolist()
    return result


def evaluate(task: Task, committee: Committee, cases: Sequence[tuple[str, str]]) -> list[list[float]]:
    """Dice per structure of every (image, label) pair of files, each on the image's own grid."""
    return [
        dice(task, segment(task, committee, image).labels, load_label(task, image, label)[0].numpy())
        for image, label in cases
    ]
