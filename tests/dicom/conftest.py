"""An Orthanc of the tests' own, and a datastore on it."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from svgd_label.pool import Database, Pool
from svgd_label.server.dicom.address import Address
from svgd_label.server.dicom.datastore import DicomDatastore
from svgd_label.server.dicom.orthanc import Orthanc
from svgd_label.server.dicom.web import DicomServer
from svgd_label.server.start import StartError
from svgd_label.tasks import Task

TASK = Task(name="hips", labels=("first", "second", "third tumour"), window=(16, 16, 16))
USER, PASSWORD = "alice", "open sesame"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    """A running, empty server that asks for a password."""
    try:
        server = Orthanc(tmp_path / "orthanc", free_port(), (USER, PASSWORD))
    except StartError as error:
        pytest.skip(str(error))
    with server.running():
        yield server


@pytest.fixture
def open_store(orthanc: Orthanc, tmp_path: Path) -> Iterator[Callable[[], DicomDatastore]]:
    """Datastores over one state folder, whose threads are not started: a test asks for each step."""
    opened: list[DicomDatastore] = []

    def open_it() -> DicomDatastore:
        state = tmp_path / "state"
        pool = Pool(Database(state, task=TASK.name), validation="none", max_frequency=10)
        server = DicomServer(Address(orthanc.url, USER, PASSWORD))
        store = DicomDatastore(
            server,
            {"Modality": "MR"},
            pause=1.0,
            state=state,
            pool=pool,
            task=TASK,
            auto_reload=False,
            on_change=lambda: None,
        )
        opened.append(store)
        return store

    yield open_it
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[[], DicomDatastore]) -> DicomDatastore:
    return open_store()
