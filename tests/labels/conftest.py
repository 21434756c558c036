"""The image that every label here is of."""

from pathlib import Path

import numpy as np
import pytest
from tests.labels.uploads import SHAPE, save


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    voxels = np.random.default_rng(0).normal(100, 20, SHAPE).astype(np.float32)
    return save(voxels, tmp_path_factory.mktemp("studies") / "case_01.nii.gz")
