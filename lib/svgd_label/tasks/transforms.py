"""The transforms of a task, built once from it and shared by training, inference and scoring."""

from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    EnsureTyped,
    Orientation,
    RandAdjustContrastd,
    RandAffined,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandGaussianNoised,
    RandScaleIntensityd,
    ScaleIntensityRange,
    ScaleIntensityRangePercentiles,
    Spacing,
    SpatialPadd,
)
from torch import Tensor

from svgd_label.images import ImageError, load_label, load_volume
from svgd_label.tasks.task import Task


def to_grid(task: Task, *, label: bool = False) -> Compose:
    """From an image or a label as read to the task's orientation and spacing; its ``inverse`` leads back.

    (1, X, Y, Z) -> (1, D, H, W), both with their affine.
    """
    steps: list[Any] = [Orientation(axcodes="RAS", labels=None)]
    if task.spacing is not None:
        steps.append(
            Spacing(pixdim=task.spacing, mode="nearest" if label else "bilinear", padding_mode="border", dtype=None)
        )
    return Compose(steps)


def normalise(task: Task, image: MetaTensor) -> MetaTensor:
    """Grey values to [0, 1], clipped, by the task's limits or the volume's own percentiles."""
    if task.intensity.clip is not None:
        low, high = task.intensity.clip
        scaled = ScaleIntensityRange(a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True)(image)
    else:
        assert task.intensity.percentiles is not None
        low, high = task.intensity.percentiles
        scaled = ScaleIntensityRangePercentiles(lower=low, upper=high, b_min=0.0, b_max=1.0, clip=True)(image)
    # A volume whose percentiles coincide is divided by zero in there; as unscorable it must still be in [0, 1].
    return MetaTensor(torch.as_tensor(scaled).nan_to_num(0.0).clamp(0.0, 1.0), meta=image.meta)


def prepare_image(task: Task, path: str) -> MetaTensor:
    """One image, read, on the task's grid and normalised: (1, D, H, W) float32 in [0, 1], never padded.

    Raises:
        ImageError: the image cannot be used.
    """
    return normalise(task, to_grid(task)(load_volume(path)))


def prepare_label(task: Task, path: str) -> MetaTensor:
    """One label on the task's grid: (1, D, H, W) uint8 with the task's values."""
    return MetaTensor(to_grid(task, label=True)(load_label(path)).to(torch.uint8))


def prepare_case(task: Task, image: str, label: str) -> dict[str, Tensor]:
    """A labelled image on the task's grid, normalised: {"image", "label"}, each (1, D, H, W), plain tensors.

    Raises:
        ImageError: one of the two cannot be used, or they do not belong together.
    """
    prepared = {"image": prepare_image(task, image), "label": prepare_label(task, label)}
    if prepared["image"].shape != prepared["label"].shape:
        raise ImageError(
            f"{label}: the label has {tuple(prepared['label'].shape[1:])} voxels on the task's grid, "
            f"its image {tuple(prepared['image'].shape[1:])}"
        )
    return {key: value.as_tensor() for key, value in prepared.items()}


def training_transforms(task: Task) -> Compose:
    """From a prepared case to a list of one random training sample of the task's window; augmented if the task says so.

    {"image": (1, D, H, W), "label": the same} -> [{"image": (1, *window), "label": (1, *window)}]: a list, because that
    is what MONAI's random windows give and its data loader takes apart.
    """
    both = ("image", "label")
    steps: list[Any] = [
        SpatialPadd(keys=both, spatial_size=task.window),
        # Half of the windows are centred on a labelled voxel; a volume that fits the window is taken whole.
        RandCropByPosNegLabeld(keys=both, label_key="label", spatial_size=task.window, pos=1, neg=1, num_samples=1),
    ]
    if task.augment:
        steps += [RandFlipd(keys=both, prob=0.5, spatial_axis=axis) for axis in range(3)]
        steps += [
            RandAffined(
                keys=both,
                prob=0.7,
                rotate_range=(0.26, 0.26, 0.26),
                scale_range=(0.15, 0.15, 0.15),
                translate_range=(4, 4, 4),
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            ),
            RandGaussianNoised(keys="image", prob=0.3, std=0.05),
            RandAdjustContrastd(keys="image", prob=0.5, gamma=(0.7, 1.5)),
            RandScaleIntensityd(keys="image", prob=0.5, factors=0.2),
        ]
    return Compose([*steps, EnsureTyped(keys=both, track_meta=False)])
