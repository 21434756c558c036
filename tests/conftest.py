"""What many tests need: a task that trains in a second, small volumes, and the real data where they are."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from svgd_label.tasks import Task

ROOT = Path(__file__).parents[1]
WITHOUT_SERVER = importlib.util.find_spec("monailabel") is None
NO_SERVER = "MONAI Label is not installed: pip install 'svgd-label[server]'"
NEEDS_SERVER = pytest.mark.skipif(WITHOUT_SERVER, reason=NO_SERVER)
SERVER_TESTS = {
    ROOT / "tests" / part for part in ("dicom", "durability", "e2e", "fuzz/test_requests.py", "server", "viewers")
}


class Skipped(pytest.Collector):
    """Stands for a folder or module of tests that could not even be imported without the server."""

    def collect(self) -> Iterator[pytest.Item]:
        pytest.skip(NO_SERVER)


@pytest.hookimpl(tryfirst=True)
def pytest_collect_directory(path: Path, parent: pytest.Collector) -> Skipped | None:
    return Skipped.from_parent(parent, name=path.name) if WITHOUT_SERVER and path in SERVER_TESTS else None


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> Skipped | None:
    return (
        Skipped.from_parent(parent, name=module_path.name) if WITHOUT_SERVER and module_path in SERVER_TESTS else None
    )


def save_nifti(path: Path, array: NDArray[Any], affine: NDArray[Any] | None = None) -> Path:
    """Writes a NIfTI file, 1 mm and RAS unless said otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def blob(shape: tuple[int, int, int], seed: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A noisy volume with two bright balls and their label map."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    label = np.zeros(shape, np.uint8)
    for value, place in ((1, 0.35), (2, 0.65)):
        centre = np.array(shape) * place + rng.uniform(-1, 1, 3)
        label[((grid - centre[:, None, None, None]) ** 2).sum(axis=0) < (min(shape) * 0.2) ** 2] = value
    image = label * 40.0 + rng.normal(50, 5, shape)
    return image.astype(np.float32), label


@pytest.fixture
def tiny() -> Task:
    """Two particles of a network so small that a step takes milliseconds."""
    return Task.model_validate(
        {
            "name": "tiny",
            "labels": ["one", "two"],
            "window": [16, 16, 16],
            "network": {"name": "UNet", "arguments": {"channels": [4, 8], "strides": [2]}},
            "particles": 2,
            "steps": 4,
            "batch": 2,
            "queries": 2,
            "mi_grid": [8, 8, 8],
        }
    )


@pytest.fixture(scope="session")
def hippocampus() -> Path:
    """The Decathlon's hippocampus set with splits.json."""
    folder = Path(os.environ.get("SVGD_LABEL_DATA", ROOT.parent / "shared" / "data")) / "hippocampus"
    if not (folder / "splits.json").is_file():
        pytest.skip(f"no hippocampus volumes in {folder}; set SVGD_LABEL_DATA to the folder that holds hippocampus/")
    return folder


@pytest.fixture(scope="session")
def dicom_series() -> Path:
    """A folder of one MR series."""
    folder = (
        Path(os.environ.get("SVGD_LABEL_DATA", ROOT.parent / "shared" / "data")) / "dicom" / "hippocampus" / "study1"
    )
    if not folder.is_dir():
        pytest.skip(f"no DICOM series in {folder}; set SVGD_LABEL_DATA to the folder that holds dicom/")
    return folder
