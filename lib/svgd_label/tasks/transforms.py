"""The transforms of a task, built once from it and shared by training, inference and scoring."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
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
    Spacing,
    SpatialPadd,
    ToDeviced,
)
from monai.transforms.utils_pytorch_numpy_unification import percentile
from torch import Tensor

from svgd_label.images import ImageError, load_volume
from svgd_label.images.files import NoMemory, Unusable, check_memory, times
from svgd_label.labels import LabelError, convert_label
from svgd_label.tasks.task import Task

ROUNDING = 1e-5  # of a grey value: more than float32 loses when a volume is resampled
LARGEST_SIDE = 10_000.0  # mm, longer than anything that is scanned


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


def on_grid(task: Task, image: MetaTensor, transform: Compose) -> MetaTensor:
    """An image on the task's grid, by the ``to_grid`` that can lead back.

    Raises:
        ImageError: the sizes that its header gives to its voxels would make a volume of a single one, or of more than
            fit into memory.
    """
    name = Path(str(image.meta.get("filename_or_obj", "an image"))).name
    if task.spacing is not None:
        axes = nibabel.io_orientation(np.asarray(image.affine))[:, 0]
        sides = np.linalg.norm(np.asarray(image.affine)[:3, :3], axis=0) * (np.array(image.shape[1:]) - 1)
        if max(sides) > LARGEST_SIDE:
            raise ImageError(f"{name}: it is {max(sides) / 1000:.3g} m long; are its voxel sizes right?")
        voxels = [int(side / task.spacing[int(axis)]) + 1 for side, axis in zip(sides, axes, strict=True)]
        check_room(name, voxels, 3 * 4)
        if min(voxels) < 2:
            raise ImageError(f"{name}: on the task's grid it has {times(voxels)} voxels; are its voxel sizes right?")
    moved = transform(image)
    assert isinstance(moved, MetaTensor)  # not made anew: that would forget the way back
    return moved


def check_room(name: str, voxels: Sequence[int], bytes_per_voxel: int, *, grid: str = "the task's") -> None:
    """Refuses an image that would not fit into the memory that is free now.

    Raises:
        ImageError: with the name; ``passing`` where the machine could hold it.
    """
    try:
        check_memory(voxels, bytes_per_voxel)
    except Unusable as error:
        raise ImageError(f"{name}: on {grid} grid, {error}", passing=isinstance(error, NoMemory)) from error


def normalise(task: Task, image: MetaTensor) -> MetaTensor:
    """Grey values to [0, 1], clipped, by the task's limits or the volume's own percentiles."""
    if task.intensity.clip is not None:
        low, high = task.intensity.clip
    else:
        assert task.intensity.percentiles is not None
        # Both at once: the volume is sorted for it.
        low, high = torch.as_tensor(percentile(image, list(task.intensity.percentiles))).tolist()
        if high - low <= ROUNDING * max(abs(low), abs(high)):
            # What is left of a constant image is the rounding of its resampling; stretched, it would look like noise.
            return MetaTensor(torch.zeros_like(image.as_tensor()), meta=image.meta)
    scaled = ScaleIntensityRange(a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True)(image)
    # Grey values up to the end of float32 overflow in there; as unscorable they must still be in [0, 1].
    return MetaTensor(torch.as_tensor(scaled).nan_to_num(0.0).clamp(0.0, 1.0), meta=image.meta)


def prepare_image(task: Task, path: str) -> MetaTensor:
    """One image, read, on the task's grid and normalised: (1, D, H, W) float32 in [0, 1], never padded.

    Raises:
        ImageError: the image cannot be used.
    """
    return normalise(task, on_grid(task, load_volume(path), to_grid(task)))


def load_label(task: Task, image: str, label: str) -> MetaTensor:
    """A stored label on its image's own grid, (1, X, Y, Z) uint8 with the task's values.

    Raises:
        ImageError: it cannot be read, does not lie on its image, or holds a value that is no structure of the task.
    """
    try:
        found = convert_label(Path(label), None, image=Path(image), labels=task.labels, aliases=task.aliases)
    except LabelError as error:
        raise ImageError(f"{Path(label).name}: {error}") from error
    return MetaTensor(torch.from_numpy(found.array).unsqueeze(0), affine=torch.as_tensor(found.affine))


def prepare_case(task: Task, image: str, label: str) -> dict[str, Tensor]:
    """A labelled image on the task's grid, normalised: {"image", "label"}, each (1, D, H, W), plain tensors.

    Raises:
        ImageError: one of the two cannot be used, or they do not belong together.
    """
    prepared = prepare_image(task, image).as_tensor()
    reference = to_grid(task, label=True)(load_label(task, image, label).to(torch.float32))
    return {"image": prepared, "label": torch.as_tensor(reference).to(torch.uint8)}


def training_transforms(task: Task, *, device: torch.device | None = None) -> Compose:
    """From a prepared case to a list of one random training sample of the task's window; augmented if the task says so.

    {"image": (1, D, H, W), "label": the same} -> [{"image": (1, *window), "label": (1, *window)}]: a list, because that
    is what MONAI's random windows give and its data loader takes apart.

    Args:
        device: where samples are augmented and end; None for where the case is.
    """
    both = ("image", "label")
    steps: list[Any] = [
        SpatialPadd(keys=both, spatial_size=task.window),
        # Half of the windows are centred on a labelled voxel; a volume that fits the window is taken whole.
        RandCropByPosNegLabeld(keys=both, label_key="label", spatial_size=task.window, pos=1, neg=1, num_samples=1),
    ]
    if device is not None:
        steps.append(ToDeviced(keys=both, device=device))
    if task.augment:
        steps += [RandFlipd(keys=both, prob=0.5, spatial_axis=axis) for axis in task.flip_axes]
        steps += [
            RandAffined(
                keys=both,
                prob=0.7,
                rotate_range=(0.26, 0.26, 0.26),
                scale_range=(0.15, 0.15, 0.15),
                translate_range=(4, 4, 4),
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
                device=device,
            ),
            RandGaussianNoised(keys="image", prob=0.3, std=0.05),
            RandAdjustContrastd(keys="image", prob=0.5, gamma=(0.7, 1.5)),
            RandScaleIntensityd(keys="image", prob=0.5, factors=0.2),
        ]
    return Compose([*steps, EnsureTyped(keys=both, track_meta=False)])
