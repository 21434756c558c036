"""A study of tiny volumes and a committee so light that a whole round of training and scoring takes a second."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tests.conftest import blob, save_nifti

SHAPE = (16, 16, 16)
TASK = """\
name: tiny
labels: [one, two]
window: [16, 16, 16]
network: {name: UNet, arguments: {channels: [4, 8], strides: [2]}}
particles: 2
steps: 40
batch: 2
queries: 3
mi_grid: [8, 8, 8]
"""


def make_study(folder: Path, images: int) -> list[str]:
    """``images`` volumes in ``folder/studies`` and the task in ``folder/tiny.yaml``; the ids."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.yaml").write_text(TASK, encoding="utf-8")
    ids = [f"image_{number:05}" for number in range(images)]
    for number, image in enumerate(ids):
        save_nifti(folder / "studies" / f"{image}.nii.gz", blob(SHAPE, number)[0].astype(np.int16))
    return ids


def random_label(rng: np.random.Generator) -> NDArray[np.uint8]:
    """A label that no other one is equal to."""
    return rng.integers(0, 3, SHAPE).astype(np.uint8)
