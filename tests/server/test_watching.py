"""What others do in the studies folder is noticed, and nothing of one's own is undone."""

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.server.store import INFO, SHAPE, values, write

from svgd_label.server.datastore import SafeDatastore


def eventually(fact: Callable[[], bool]) -> None:
    """Watching takes a moment; how long is not what is tested."""
    for _ in range(200):
        if fact():
            return
        time.sleep(0.1)
    assert fact()


@pytest.mark.parametrize("file_system", ["local", "share"])
def test_what_others_do_in_the_folder_is_noticed(
    open_store: Callable[..., SafeDatastore],
    folder: Path,
    tmp_path: Path,
    file_system: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if file_system == "share":  # which announces nothing and is looked at from time to time
        monkeypatch.setattr("svgd_label.server.watcher.on_network", lambda _: "nfs4")
        monkeypatch.setattr("svgd_label.server.watcher._POLL_SECONDS", 0.3)
    store = open_store(auto_reload=True)
    write(folder / "dropped.nii.gz", np.ones(SHAPE, np.int16))
    write(tmp_path / "elsewhere.nii.gz", np.ones(SHAPE, np.int16)).rename(folder / "renamed.nii.gz")
    write(tmp_path / "label.nii.gz", values()).rename(folder / "labels/final/b.nii.gz")
    write(folder / "labels/second reader/a.nii.gz", values())
    write(folder / "labels/second/a.nii.gz", values())
    (folder / "c.nii.gz").unlink()
    (folder / "series").mkdir()
    (folder / "series" / "1.dcm").write_bytes(bytes(128) + b"DICM")
    eventually(lambda: store.list_images() == ["a", "b", "dropped", "renamed", "series"])
    eventually(lambda: store.get_labeled_images() == ["b"])
    eventually(lambda: store.get_labels_by_image_id("a") == {"second": "a"})
    assert [case.image for case in store.pool.training_list()] == ["b"]
    write(folder / "labels/second/b.nii.gz", values())  # in a tag that came after the start
    eventually(lambda: "second" in store.get_labels_by_image_id("b"))
    (folder / "labels/final/b.nii.gz").unlink()
    eventually(lambda: store.get_labeled_images() == [])


def test_a_label_that_comes_before_its_image_is_taken(
    open_store: Callable[..., SafeDatastore], folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(auto_reload=True)
    write(tmp_path / "label.nii.gz", values()).rename(folder / "labels/final/late.nii.gz")
    eventually(lambda: "final/late belongs to no image" in caplog.text)
    write(tmp_path / "image.nii.gz", np.ones(SHAPE, np.int16)).rename(folder / "late.nii.gz")
    (folder / "notes.txt").write_text("no image, no label")
    eventually(lambda: store.get_labeled_images() == ["late"])
    assert "notes.txt" not in caplog.text


def test_a_folder_that_is_filled_slowly_becomes_an_image(
    open_store: Callable[..., SafeDatastore], folder: Path
) -> None:
    store = open_store(auto_reload=True)
    (folder / "series").mkdir()
    time.sleep(1.5)
    assert "series" not in store.list_images()
    (folder / "series" / "1.dcm").write_bytes(bytes(128) + b"DICM")
    eventually(lambda: "series" in store.list_images())


def test_watching_undoes_nothing_of_ones_own(
    open_store: Callable[..., SafeDatastore], upload: Path, tmp_path: Path
) -> None:
    store = open_store(auto_reload=True)
    for seed in range(12):
        write(upload, values(seed))
        store.save_label("abc"[seed % 3], str(upload), "final", dict(INFO))
        time.sleep(0.1)
    before = store.pool.database.connection.total_changes
    time.sleep(1.5)
    assert store.get_labeled_images() == ["a", "b", "c"]
    assert {v.client for v in store.labels.versions()} == {"anna"}
    assert len(store.labels.versions()) == 12
    assert store.get_label_info("a", "final")["client_id"] == "anna"
    assert store.pool.database.connection.total_changes == before


def test_a_process_beside_the_server_leaves_the_folder_to_it(
    open_store: Callable[..., SafeDatastore], folder: Path, tmp_path: Path
) -> None:
    """What it indexed first would be no news to the server, which then would neither rank nor train."""
    told: list[None] = []
    server = open_store(auto_reload=True, on_change=lambda: told.append(None))
    open_store(auto_reload=True, beside=True)
    for number in range(3):
        write(tmp_path / "new.nii.gz", np.ones(SHAPE, np.int16)).rename(folder / f"new{number}.nii.gz")
        open_store(auto_reload=False, beside=True)
        eventually(lambda number=number: len(told) == number + 1)  # type: ignore[misc]
        assert f"new{number}" in server.list_images()


def test_what_could_not_be_followed_is_looked_at_again(
    open_store: Callable[..., SafeDatastore], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("svgd_label.server.watcher._POLL_SECONDS", 0.3)
    store = open_store(auto_reload=True)
    check, calls = store.studies.check, []

    def full_once(*names: Any) -> int:
        calls.append(names)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return check(*names)

    monkeypatch.setattr(store.studies, "check", full_once)
    (folder / "series").mkdir()  # which is filled after that, and whose inside is not watched
    eventually(lambda: bool(calls))
    (folder / "series" / "1.dcm").write_bytes(bytes(128) + b"DICM")
    eventually(lambda: "series" in store.list_images())
