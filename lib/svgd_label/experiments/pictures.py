"""What a picked image looked like to the committee that picked it: one slice each, kept for the report."""

import io
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.image import imsave
from numpy.typing import NDArray

from svgd_label.images import ImageError
from svgd_label.inference import particle_moments, sliding_window
from svgd_label.svgd import Committee
from svgd_label.tasks import Task
from svgd_label.tasks.transforms import prepare_case
from svgd_label.training import Case
from svgd_label.uncertainty import maps

logger = logging.getLogger(__name__)

LARGEST_SIDE = 128
"""Pixels of a picture in the report: of more, every second, third, … is left out."""


@torch.inference_mode()
def write_pictures(folder: Path, task: Task, committee: Committee, cases: Sequence[Case], step: int) -> None:
    """Writes ``STEP-ID.npz`` for each case: the axial slice where the committee is least sure, on the task's grid.

    Not for one that has a picture of an earlier step, nor for one whose file or label cannot be used.
    ``image`` 0 to 255, ``prediction`` and ``reference`` in the task's values, all uint8; ``entropy`` in nats, float16.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = next(committee.parameters()).device
    committee.eval()
    there = set(folder.iterdir())
    for case in cases:
        if any(folder / f"{earlier:03d}-{case.id}.npz" in there for earlier in range(step)):
            continue
        try:
            prepared = prepare_case(task, case.image, case.label)
        except ImageError as error:  # training names it too, and passes over it
            logger.warning("no picture: %s", error)
            continue
        image = prepared["image"].to(device)
        found = maps(sliding_window(task, lambda x: particle_moments(committee, x), image).unsqueeze(0))
        entropy = found.entropy[0].cpu()
        at = int(entropy.sum(dim=(0, 1)).argmax())
        np.savez_compressed(
            folder / f"{step:03d}-{case.id}.npz",
            image=(prepared["image"][0, :, :, at] * 255).byte().numpy(),
            prediction=found.mean[0].argmax(dim=0)[:, :, at].byte().cpu().numpy(),
            reference=prepared["label"][0, :, :, at].numpy(),
            entropy=entropy[:, :, at].numpy().astype(np.float16),
        )


def tile(path: Path, classes: int) -> tuple[bytes, float]:
    """What ``write_pictures`` wrote, as it is shown: slice with prediction, the same with reference, entropy.

    Anterior is up and the patient's right on the right; the entropy goes from dark, 0, to bright, log(classes).

    Returns:
        A WebP of the three side by side, and the mean entropy of the slice in nats.
    """
    with np.load(path) as stored:
        every = math.ceil(max(stored["image"].shape) / LARGEST_SIDE)
        image, prediction, reference, entropy = (
            np.rot90(stored[key][::every, ::every]) for key in ("image", "prediction", "reference", "entropy")
        )
    brightness = colormaps["inferno"](entropy.astype(np.float32) / math.log(classes))[..., :3]
    parts = [_coloured(image, prediction), _coloured(image, reference), (brightness * 255).astype(np.uint8)]
    gap = np.zeros((len(image), 2, 3), np.uint8)
    picture = io.BytesIO()
    # A fifth of a PNG's size: a run has a thousand of them.
    imsave(picture, np.hstack([parts[0], gap, parts[1], gap, parts[2]]), format="webp", pil_kwargs={"quality": 85})
    return picture.getvalue(), float(entropy.mean(dtype=np.float64))


def _coloured(image: NDArray[np.uint8], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W) grey values and structures -> (H, W, 3), each structure tinted in a colour of its own."""
    grey = np.repeat(image[..., None], 3, axis=2).astype(np.float32)
    for value in range(1, int(labels.max()) + 1):
        grey[labels == value] = 0.5 * grey[labels == value] + 127.5 * np.array(colormaps["Set1"]((value - 1) % 9)[:3])
    return grey.astype(np.uint8)
