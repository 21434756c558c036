"""The level of not looking at the image: one label map, made of the pool's labels, laid into every volume."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, one_hot

from svgd_label.inference import dice
from svgd_label.tasks import Task
from svgd_label.tasks.transforms import load_label, to_grid
from svgd_label.training import Case

BOX = (32, 32, 32)
"""Voxels to which every volume is stretched, so that labels of volumes of different sizes can be averaged."""
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
TRIED_ON = 20
"""Volumes of the pool."""


def floor(task: Task, pool: Sequence[Case], evaluation: Sequence[Case]) -> list[float]:
    """Dice of each structure, mean over the evaluation volumes, of a label map that is the same for all of them.

    The pool's label maps are stretched to one box and averaged. A voxel whose share of foreground is above a threshold
    takes the structure that is most frequent there; the threshold is the one that suits volumes of the pool best. The
    map is then stretched to the box of each evaluation volume, of which nothing but the size is used.

    Raises:
        ImageError: a label cannot be read.
    """
    shares = torch.zeros(task.classes, *BOX)
    tried: list[Tensor] = []
    for case in pool:
        stretched = _stretched(one_hot(_label(task, case), task.classes).movedim(-1, 0))
        shares += stretched / len(pool)
        if len(tried) < TRIED_ON:
            tried.append(stretched.argmax(dim=0))
    most_frequent = shares[1:].argmax(dim=0) + 1
    maps = [torch.where(shares[1:].sum(dim=0) > threshold, most_frequent, 0) for threshold in THRESHOLDS]
    chosen = max(maps, key=lambda one: float(np.nanmean([_dice(task, one, label) for label in tried])))
    measured = []
    for case in evaluation:
        reference = _label(task, case)
        placed = interpolate(chosen[None, None].float(), size=reference.shape, mode="nearest-exact")[0, 0]
        measured.append(_dice(task, placed, reference))
    means: list[float] = np.nanmean(measured, axis=0).tolist()
    return means


def _label(task: Task, case: Case) -> Tensor:
    """(D, H, W), int64, on the task's grid."""
    moved = to_grid(task, label=True)(load_label(task, case.image, case.label).to(torch.float32))
    return torch.as_tensor(moved).as_subclass(Tensor)[0].long()


def _stretched(shares: Tensor) -> Tensor:
    return interpolate(shares[None].float(), size=BOX, mode="trilinear")[0]


def _dice(task: Task, labels: Tensor, reference: Tensor) -> list[float]:
    return dice(task, labels.byte().numpy(), reference.byte().numpy())
