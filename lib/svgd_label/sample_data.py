"""The sample study: a dozen small synthetic phantoms that look a little like a hippocampus, made from a seed."""

import gzip
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom
from scipy.spatial.transform import Rotation

CASES = 12
LABELLED = (1, 4, 6, 9)
"""Cases that come with a label; the others have a reference beside the study."""
ANTERIOR, POSTERIOR = 1, 2

README = """# Sample data

Twelve synthetic volumes that let the app run at once. They were computed, nobody was scanned: `python main.py
sample-data` makes exactly these files again (`lib/svgd_label/sample_data.py`, seed 0). They are given away under
CC0 1.0.

- `phantom_01.nii.gz` to `phantom_12.nii.gz`: the study. About 40 x 52 x 36 voxels of 1 mm, grey values of an arbitrary
  scale, as in MRI. Two structures that touch: `anterior` (value 1, a thick head) and `posterior` (value 2, a thinner,
  bent body and tail behind it), among ventricle-like dark spaces and bright decoys of the same kind of tissue. Pose,
  size, bend, contrast, shading and noise differ from case to case; some are turned, dark or nearly without contrast.
- `labels/final/`: labels of four of them. The server takes them as done and trains on them.
- `reference/`: the true labels of the eight others, to measure a result. The server never reads them.

They say whether the app works, nothing about how well it would do on people.
"""


@dataclass(frozen=True)
class _Look:
    """What sets one case apart. Lengths in mm, angles in degrees, grey values as shares of the case's scale."""

    contrast: float
    scale: float
    noise: float
    shading: float
    turn: tuple[float, float, float]
    size: float
    bend: float
    decoys: int


def generate(folder: Path, *, seed: int = 0) -> None:
    """Writes the sample study: images, ``labels/final``, ``reference`` and a README. The same seed, the same bytes.

    Args:
        folder: made where missing; its phantoms are replaced, other files stay.
        seed: of all shapes and grey values.
    """
    for part in (folder / "labels", folder / "reference"):
        shutil.rmtree(part, ignore_errors=True)
    (folder / "labels" / "final").mkdir(parents=True)
    (folder / "reference").mkdir()
    for case in range(1, CASES + 1):
        image, label = phantom(case, seed=seed)
        name = f"phantom_{case:02}.nii.gz"
        affine = np.diag([1.0, 1.0, 1.0, 1.0])
        affine[:3, 3] = -(np.array(image.shape) // 2)
        _write(image, affine, folder / name)
        _write(label, affine, folder / ("labels/final" if case in LABELLED else "reference") / name)
    (folder / "README.md").write_text(README, encoding="utf-8")


def phantom(case: int, *, seed: int = 0) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """One phantom: image (X, Y, Z) int16 and label (X, Y, Z) uint8 with 0 background, 1 anterior, 2 posterior.

    Axes are R, A, S: the long axis of the structure runs along y, its head towards larger y. 1 mm voxels.
    """
    rng = np.random.default_rng([seed, case])
    look = _look(case, rng)
    shape = tuple(int(n) for n in np.array([40, 52, 36]) + rng.integers(-2, 3, 3))
    places = _places(shape, look, rng)
    label = _label(places, look, rng)
    tissue = gaussian_filter(_tissue(places, label, look, rng), 0.6)
    image = look.scale * tissue * (1 + look.shading * _smooth(shape, 20, rng))
    image += look.scale * look.noise * rng.standard_normal(shape)
    # Steps of a hundredth of the scale: finer ones would only be noise that cannot be compressed.
    step = max(look.scale / 100, 1)
    return (np.round(image.clip(min=0) / step) * step).astype(np.int16), label


def _look(case: int, rng: np.random.Generator) -> _Look:
    x, y, z = rng.normal(0, 7, 3)
    look = _Look(
        contrast=rng.uniform(0.22, 0.34),
        scale=float(rng.choice([250, 800, 2500])),
        noise=rng.uniform(0.025, 0.045),
        shading=rng.uniform(0.1, 0.22),
        turn=(x, y, z),
        size=rng.uniform(0.9, 1.15),
        bend=rng.uniform(3, 8),
        decoys=int(rng.integers(2, 5)),
    )
    # The odd ones, so that there is something to find: turned, dark, faint, shaded, small and noisy.
    odd: dict[int, dict[str, Any]] = {
        3: {"turn": (12.0, -8.0, 30.0)},
        5: {"scale": 60.0, "noise": 0.045},
        8: {"contrast": 0.18, "noise": 0.035},
        11: {"turn": (-25.0, 10.0, -15.0), "shading": 0.3},
        12: {"contrast": 0.2, "size": 0.85, "noise": 0.045},
    }
    return replace(look, **odd.get(case, {}))


def _places(shape: tuple[int, ...], look: _Look, rng: np.random.Generator) -> NDArray[np.float64]:
    """(3, X, Y, Z): where each voxel lies in the upright, unscaled structure's frame, in mm from its centre."""
    centre = (np.array(shape) - 1) / 2 + rng.normal(0, 1.5, 3)
    offsets = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")) - centre[:, None, None, None]
    turned = Rotation.from_euler("xyz", look.turn, degrees=True).as_matrix().T @ offsets.reshape(3, -1)
    return np.asarray(turned / look.size).reshape(3, *shape)


def _label(places: NDArray[np.float64], look: _Look, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Head and tail are ellipsoids round a bent axis; a ragged plane parts them."""
    x, y, z = places + np.stack([_smooth(places.shape[1:], 5, rng) for _ in range(3)]) * 1.2
    axis_x, axis_z = look.bend * (y / 18) ** 2 - 2, -0.4 * look.bend * (y / 18)
    head = ((x - axis_x) / 6.5) ** 2 + ((y - 8) / 8.5) ** 2 + ((z - axis_z) / 5.5) ** 2 < 1
    tail = ((x - axis_x) / 4.6) ** 2 + ((y + 6) / 13.5) ** 2 + ((z - axis_z) / 4.2) ** 2 < 1
    border = 2.5 + 1.5 * rng.standard_normal() + 0.25 * x
    label = np.zeros(x.shape, np.uint8)
    label[(head | tail) & (y >= border)] = ANTERIOR
    label[(head | tail) & (y < border)] = POSTERIOR
    return label


def _tissue(
    places: NDArray[np.float64], label: NDArray[np.uint8], look: _Look, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Grey value of each voxel before blur, shading and noise, as a share of the scale."""
    x, y, z = places
    tissue = 0.5 + 0.06 * _smooth(label.shape, 3, rng)
    for _ in range(look.decoys):  # of the structure's own brightness, so that brightness alone does not find it
        at = rng.uniform([-18, -24, -16], [18, 24, 16])
        radii = rng.uniform(2.5, 6, 3)
        blob = ((x - at[0]) / radii[0]) ** 2 + ((y - at[1]) / radii[1]) ** 2 + ((z - at[2]) / radii[2]) ** 2 < 1
        tissue[blob] = 0.5 + look.contrast * rng.uniform(0.7, 1.1)
    lateral = (x - look.bend * (y / 18) ** 2 - 6) ** 2 / 6 + (z + 0.4 * look.bend * (y / 18) - 4) ** 2 / 9 < 1
    tissue[lateral & (np.abs(y) < 16)] = 0.5 - 1.2 * look.contrast
    tissue[label == ANTERIOR] = 0.5 + look.contrast
    tissue[label == POSTERIOR] = 0.5 + 0.85 * look.contrast
    return tissue


def _smooth(shape: tuple[int, ...], coarse: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """A random field of about unit amplitude that changes over ``coarse`` voxels."""
    knots = rng.standard_normal([n // coarse + 2 for n in shape])
    field = zoom(knots, [n / k for n, k in zip(shape, knots.shape, strict=True)], order=3)
    return np.asarray(field / np.abs(field).max())


def _write(array: NDArray[np.int16] | NDArray[np.uint8], affine: NDArray[np.float64], path: Path) -> None:
    volume = nibabel.Nifti1Image(array, affine)
    volume.set_qform(affine, code="scanner")
    volume.set_sform(affine, code="scanner")
    volume.header.set_xyzt_units("mm")
    # No time in the gzip header: the same seed gives the same bytes.
    path.write_bytes(gzip.compress(volume.to_bytes(), compresslevel=9, mtime=0))
