"""The server's ranking against one computed here from the formulas, with numpy, scipy and scikit-learn.

Of the package only the committee is taken: its particles are called as plain networks, one by one.
"""

from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.special import softmax
from sklearn.metrics import mutual_info_score
from tests.e2e.server import Server

from svgd_label import checkpoint
from svgd_label.svgd import Committee
from svgd_label.tasks import load_task

pytestmark = pytest.mark.slow

WINDOW = (48, 64, 48)
GRID = 32
BINS = 64


@dataclass
class Expected:
    """One image's terms."""

    entropy: float
    codes: NDArray[np.int64]


def normalised(file: Path) -> NDArray[np.float64]:
    """Grey values in [0, 1] between the percentiles 0.5 and 99.5."""
    image = nibabel.load(file)
    assert isinstance(image, nibabel.Nifti1Image)
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S"), "these volumes need no reorientation"
    np.testing.assert_allclose(image.header.get_zooms(), 1, atol=1e-5, err_msg="these volumes need no resampling")
    values = np.asarray(image.dataobj, dtype=np.float64)
    low, high = np.percentile(values, [0.5, 99.5])
    scaled: NDArray[np.float64] = np.clip((values - low) / (high - low), 0, 1)
    return scaled


def entropy(committee: Committee, values: NDArray[np.float64]) -> float:
    """Mean over the image's own voxels of H = -sum_c p_c log p_c, p the mean of the particles' softmax."""
    missing = [side - n for side, n in zip(WINDOW, values.shape, strict=True)]
    assert min(missing) >= 0, "every one of these volumes fits the window"
    before = [n // 2 for n in missing]
    padded = np.pad(values, [(b, n - b) for b, n in zip(before, missing, strict=True)])
    x = torch.from_numpy(padded.astype(np.float32))[None, None]
    with torch.inference_mode():
        logits = [particle.eval()(x)[0].numpy().astype(np.float64) for particle in committee.particles]
    p = np.mean([softmax(one, axis=0) for one in logits], axis=0)
    h = -np.sum(p * np.log(p), axis=0)
    own = tuple(slice(b, b + n) for b, n in zip(before, values.shape, strict=True))
    return float(h[own].mean())


def codes(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """floor(64 x), at most 63, on a grid of 32 x 32 x 32 with voxel centres spread evenly over the volume."""
    axes = [np.clip((np.arange(GRID) + 0.5) * n / GRID - 0.5, 0, n - 1) for n in values.shape]
    grid = map_coordinates(values, np.meshgrid(*axes, indexing="ij"), order=1, mode="nearest")
    floored: NDArray[np.int64] = np.minimum(np.floor(grid * BINS), BINS - 1).astype(np.int64).ravel()
    return floored


def min_max(values: NDArray[np.float64]) -> NDArray[np.float64]:
    stretched: NDArray[np.float64] = (values - values.min()) / (values.max() - values.min())
    return stretched


def test_the_ranking_is_the_papers_formula(real: Server) -> None:
    real.wait_scoring()
    version, strategy = real.query("SELECT version, strategy FROM acquisitions ORDER BY step DESC LIMIT 1")[0]
    assert strategy == "entropy_mi"
    file = real.committee_file(version)
    committee = checkpoint.load(file, load_task(real.conf["task"]), device=torch.device("cpu")).committee
    assert len(committee.particles) == 5

    rows = real.query(
        "SELECT image, labelled, score, r.entropy, r.mutual_information "
        "FROM images i JOIN ranking r USING (image) WHERE rank IS NOT NULL ORDER BY rank"
    )
    # The pool's one DICOM folder is read by other tests; here it counts only in the pool's minimum and maximum.
    others = [row for row in rows if not row[0].startswith("hippocampus")]
    rows = [row for row in rows if row[0].startswith("hippocampus")]
    images = sorted(row[0] for row in rows)
    assert len(images) >= 11
    expected = {}
    for image in images:
        values = normalised(real.studies / f"{image}.nii.gz")
        expected[image] = Expected(entropy(committee, values), codes(values))
    stored = {image: (score, h, mi) for image, _, score, h, mi in rows}
    labelled = sorted(image for image, is_labelled, *_ in rows if is_labelled)
    assert labelled

    information = {
        image: np.mean([mutual_info_score(expected[image].codes, expected[t].codes) for t in labelled if t != image])
        for image in images
    }
    for image in images:
        assert stored[image][1] == pytest.approx(expected[image].entropy, abs=1e-4)
        assert stored[image][2] == pytest.approx(information[image], abs=1e-4)

    entropies = min_max(np.array([expected[i].entropy for i in images] + [row[3] for row in others]))
    informations = min_max(np.array([information[i] for i in images] + [row[4] for row in others]))
    score = (entropies - informations)[: len(images)]
    for image, value in zip(images, score, strict=True):
        assert stored[image][0] == pytest.approx(value, abs=1e-4)
    by_score = [image for _, image in sorted(zip(-score, images, strict=True))]
    assert [row[0] for row in rows] == by_score
