"""Servers and data that several journeys share."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:  # 'python -m pytest' has put it there, plain 'pytest' has not
    sys.path.insert(0, str(ROOT))

from tests.e2e.server import Server  # noqa: E402

DATA = Path(os.environ.get("SVGD_LABEL_DATA", ROOT.parent / "shared" / "data"))
REAL_TASK = """\
name: short
labels: [anterior, posterior]
spacing: [1, 1, 1]
window: [48, 64, 48]
steps: 20
queries: 3
"""


@pytest.fixture(scope="session")
def hippocampus() -> Path:
    """The folder of real volumes in MSD layout."""
    folder = DATA / "hippocampus"
    if not (folder / "splits.json").is_file():
        pytest.skip(f"no real volumes in {folder}: set SVGD_LABEL_DATA to the folder that holds hippocampus/")
    return folder


@pytest.fixture(scope="session")
def dicom_series() -> Path:
    """A folder of DICOM files, one MR series."""
    folder = DATA / "dicom" / "hippocampus" / "study1"
    if not folder.is_dir():
        pytest.skip(f"no DICOM series in {folder}: set SVGD_LABEL_DATA to the folder that holds dicom/")
    return folder


@pytest.fixture(scope="session")
def real(hippocampus: Path, dicom_series: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A dozen real volumes and a DICOM series, six of them labelled, after one short training by the server."""
    folder = tmp_path_factory.mktemp("real")
    task = folder / "short.yaml"
    task.write_text(REAL_TASK, encoding="utf-8")
    server = Server(folder, {"task": str(task)})
    final = server.studies / "labels" / "final"
    final.mkdir(parents=True)
    for number, name in enumerate(json.loads((hippocampus / "splits.json").read_text())["pool"][:12]):
        shutil.copy(hippocampus / "imagesTr" / name, server.studies)
        if number % 2 == 0:
            shutil.copy(hippocampus / "labelsTr" / name, final)
    shutil.copytree(dicom_series, server.studies / "mr_series")
    try:
        server.start()
        server.train()
        yield server
    finally:
        server.kill()
