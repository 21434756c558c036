"""Six small images in a pool, and a committee that can score them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import blob, save_nifti

from svgd_label.acquisition import strategy
from svgd_label.checkpoint import new_committee
from svgd_label.pool import Database, Pool, Studies
from svgd_label.svgd import Committee
from svgd_label.tasks import Task

RULE = strategy("entropy_mi")
IMAGES = "abcdef"


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    folder = tmp_path / "studies"
    for number, image in enumerate(IMAGES):
        save_nifti(folder / f"{image}.nii.gz", blob((12, 13, 14), number)[0])
    pool = Pool(Database(tmp_path / "state", task="tiny"), validation="none", max_frequency=3)
    Studies(folder, pool).reconcile()
    yield pool
    pool.database.close()


@pytest.fixture
def paths(tmp_path: Path, pool: Pool) -> dict[str, str]:
    return {image: str(tmp_path / "studies" / f"{image}.nii.gz") for image in pool.pool_images()}


@pytest.fixture
def committee(tiny: Task) -> Committee:
    return new_committee(tiny, seed=0)
