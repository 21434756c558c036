"""A folder of three images, datastores over it, and a label to upload."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.server.store import SHAPE, TASK, values, write

from svgd_label.pool import Database, Pool
from svgd_label.server.datastore import SafeDatastore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, image in enumerate("abc"):
        write(tmp_path / "my studies" / f"{image}.nii.gz", np.full(SHAPE, number, np.int16))
    return tmp_path / "my studies"


@pytest.fixture
def open_store(folder: Path) -> Iterator[Callable[..., SafeDatastore]]:
    opened: list[SafeDatastore] = []

    def open_it(auto_reload: bool = False, **others: Any) -> SafeDatastore:
        state = folder / ".svgd"
        pool = Pool(Database(state, task=TASK.name), validation="fifth", max_frequency=10)
        opened.append(SafeDatastore(folder, state=state, pool=pool, task=TASK, auto_reload=auto_reload, **others))
        return opened[-1]

    yield open_it
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[..., SafeDatastore]) -> SafeDatastore:
    return open_store()


@pytest.fixture
def upload(tmp_path: Path) -> Path:
    return write(tmp_path / "upload.nii.gz", values())
