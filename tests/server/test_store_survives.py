"""The datastore beside MONAI Label's own index, with a damaged one of its own, and on a full or broken disk."""

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.server.store import INFO, TASK, refusal, stored, values, write

from svgd_label.pool import Database, Pool
from svgd_label.server.datastore import SafeDatastore


def test_monai_labels_own_index_is_never_written(store: SafeDatastore, upload: Path, folder: Path) -> None:
    store.save_label("a", str(upload), "final", dict(INFO))
    store.set_name("x")
    store.refresh()
    assert {path.name for path in folder.iterdir()} == {"a.nii.gz", "b.nii.gz", "c.nii.gz", "labels", ".svgd"}


def test_monai_labels_own_index_is_taken_over(folder: Path, open_store: Callable[..., SafeDatastore]) -> None:
    write(folder / "labels/final/b.nii.gz", values())
    objects = {
        "b": {
            "image": {"ext": ".nii.gz", "info": {"ts": 5}},
            "labels": {"final": {"ext": ".nii.gz", "info": {"client_id": "ben"}}},
        }
    }
    (folder / "datastore_v2.json").write_text(json.dumps({"name": "old", "description": "", "objects": objects}))
    store = open_store()
    assert store.name() == "old"
    assert store.get_image_info("b")["ts"] == 5
    assert store.get_label_info("b", "final")["client_id"] == "ben"
    assert store.get_labeled_images() == ["b"]


def test_a_damaged_index_is_made_again(
    store: SafeDatastore,
    upload: Path,
    open_store: Callable[..., SafeDatastore],
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store.save_label("a", str(upload), "final", dict(INFO))
    path = store.pool.database.path
    store.pool.database.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copytree(folder, folder.parent / "copy")
    damaged = folder.parent / "copy" / ".svgd" / path.name
    damaged.write_bytes(b"\0garbage" * 2000)
    state = damaged.parent
    with caplog.at_level(logging.WARNING):
        pool = Pool(Database(state, task=TASK.name), validation="fifth", max_frequency=10)
        again = SafeDatastore(folder.parent / "copy", state=state, pool=pool, task=TASK, auto_reload=False)
    assert "made again from the files: 3 images, 1 final labels" in caplog.text
    assert again.get_labeled_images() == ["a"]
    assert np.array_equal(stored(again.get_label_uri("a", "final")), values())
    assert len(again.labels.versions("a")) == 1


def test_a_full_disk_is_a_sentence_and_the_old_label_stays(store: SafeDatastore, upload: Path, folder: Path) -> None:
    """In a process of its own whose files may not grow beyond 200 bytes."""
    store.save_label("a", str(upload), "final", dict(INFO))
    before = {path: path.read_bytes() for path in (folder / "labels").rglob("*") if path.is_file()}
    program = f"""
import resource, sys
from pathlib import Path
from fastapi import HTTPException
from svgd_label.pool import Database, Pool
from svgd_label.server.datastore import SafeDatastore
from svgd_label.tasks import Task
task = Task(name="hips", labels=("anterior", "posterior"), window=(16, 16, 16))
folder = Path(sys.argv[1])
pool = Pool(Database(folder / ".svgd", task="hips"), validation="fifth", max_frequency=10)
store = SafeDatastore(folder, state=folder / ".svgd", pool=pool, task=task, auto_reload=False)
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
try:
    store.save_label("a", sys.argv[2], "final", {INFO!r})
except HTTPException as error:
    print(error.status_code, error.detail)
"""
    child = subprocess.run(
        [sys.executable, "-c", program, str(folder), str(upload)], capture_output=True, text=True, timeout=300
    )
    assert child.stdout.startswith("507 Nothing was stored"), child.stderr
    assert {path: path.read_bytes() for path in (folder / "labels").rglob("*") if path.is_file()} == before


def test_a_store_damaged_in_use_is_a_sentence_and_leaves_nothing_behind(
    store: SafeDatastore, upload: Path, folder: Path
) -> None:
    database = store.pool.database
    page, size = (
        database.connection.execute(query).fetchone()[0]
        for query in ("SELECT rootpage FROM sqlite_master WHERE name = 'labels'", "PRAGMA page_size")
    )
    database.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    with database.path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    assert "Restart the server" in refusal(507, store.save_label, "a", str(upload), "final", dict(INFO))
    assert list((folder / "labels" / "final").iterdir()) == []
    assert list((folder / ".svgd").glob("versions/a/*")) == []
