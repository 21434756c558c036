"""An image's grid, the truth on it, and the files a client uploads as its label."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
from numpy.typing import NDArray

from svgd_label.labels import ConvertedLabel, LabelError, convert_label

LABELS = ("anterior", "posterior")
ALIASES = {"anterior": ("head", "Hippocampus Head"), "posterior": ("tail",)}
SHAPE = (7, 5, 6)
RNG = np.random.default_rng(1)
TRUTH = RNG.integers(0, 3, SHAPE).astype(np.uint8)
# Oblique, anisotropic and away from the origin, as scanners make them.
AFFINE = nibabel.affines.from_matvec(
    nibabel.eulerangles.euler2mat(0.3, -0.2, 0.1) @ np.diag([0.9, 1.1, 2.5]), [-80.0, 35.5, 12.25]
)
BOTH = [{"name": "anterior", "idx": 1}, {"name": "posterior", "idx": 2}]


def save(array: NDArray[Any], path: Path, affine: NDArray[np.float64] = AFFINE) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def convert(file: Path, info: list[dict[str, Any]] | None, image: Path) -> ConvertedLabel:
    return convert_label(file, info, image=image, labels=LABELS, aliases=ALIASES)


def refusal(file: Path, info: Any, image: Path) -> str:
    with pytest.raises(LabelError) as caught:
        convert(file, info, image)
    assert str(caught.value).startswith("The label of case_01.nii.gz was refused: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def save_nrrd(
    array: NDArray[Any],
    path: Path,
    *,
    space: str | None = "left-posterior-superior",
    segments: Sequence[tuple[str, int]] = (),
    encoding: str = "gzip",
) -> Path:
    signs = {"left-posterior-superior": [-1, -1, 1], "left-anterior-superior": [-1, 1, 1], None: [-1, -1, 1]}
    affine = np.diag([*signs.get(space, [1, 1, 1]), 1]) @ AFFINE
    header: dict[str, Any] = {
        "space directions": affine[:3, :3].T,
        "space origin": affine[:3, 3],
        "encoding": encoding,
        "kinds": ["domain"] * 3,
    }
    if space:
        header["space"] = space
    for number, (name, value) in enumerate(segments):
        header |= {f"Segment{number}_Name": name, f"Segment{number}_LabelValue": str(value)}
    nrrd.write(str(path), array, header)
    return path
