"""No label that was acknowledged is ever lost: kills, crowds, full disks, corrections, deletions."""

import hashlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from svgd_label.pool import Database, LabelStore, Pool, Studies

IMAGES = "abcd"
SAVER = """
import hashlib, os, resource, sys
from pathlib import Path
from svgd_label.pool import Database, LabelStore, Pool, Studies

folder, name, count, limit = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
database = Database(folder / ".svgd", task="t")
studies = Studies(folder, Pool(database, validation="none", max_frequency=10))
store = LabelStore(studies)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
for i in range(count):
    image = "abcd"[i % 4]
    content = f"{name} {os.getpid()} {i} ".encode() * 5000
    try:
        file = store.incoming("final")
        with file.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        version = store.save(image, "final", file, info={}, client=name, model_version=i)
    except Exception as error:
        file.unlink(missing_ok=True)
        print("refused", type(error).__name__, flush=True)
        continue
    print(image, version.number, hashlib.sha256(content).hexdigest(), flush=True)
"""


@pytest.fixture
def studies(tmp_path: Path) -> Studies:
    for image in IMAGES:
        (tmp_path / f"{image}.nii.gz").write_text("image")
    return reopened(tmp_path)


def reopened(folder: Path) -> Studies:
    studies = Studies(folder, Pool(Database(folder / ".svgd", task="t"), validation="none", max_frequency=10))
    studies.reconcile()
    return studies


def start(folder: Path, name: str, count: int, limit: int = 0) -> "subprocess.Popen[str]":
    arguments = [sys.executable, "-c", SAVER, str(folder), name, str(count), str(limit)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def save(store: LabelStore, content: str, image: str = "a", tag: str = "final", version: int | None = None) -> None:
    file = store.incoming(tag)
    file.write_text(content)
    store.save(image, tag, file, info={}, client="anna", model_version=version)


def label(studies: Studies, image: str = "a", tag: str = "final") -> str:
    path = studies.label_path(image, tag)
    assert path is not None
    return path.read_text()


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_version_is_kept_with_who_when_and_from_what(studies: Studies) -> None:
    store = LabelStore(studies)
    studies.pool.inferred("a", 0)
    before = time.time()
    save(store, "first", version=7)
    save(store, "second")
    store.record_dice("a", 2, 0.75)
    versions = store.versions("a")
    assert [v.file.read_text() for v in versions] == ["first", "second"]
    assert [(v.number, v.tag, v.client, v.model_version, v.dice) for v in versions] == [
        (1, "final", "anna", 7, None),
        (2, "final", "anna", 0, 0.75),
    ]
    assert before <= versions[0].saved <= versions[1].saved
    assert label(studies) == "second"
    assert store.versions("b") == []
    assert len(store.versions()) == 2


def test_deleting_keeps_the_versions_and_restoring_makes_a_new_one(studies: Studies) -> None:
    store = LabelStore(studies)
    save(store, "first")
    save(store, "second")
    assert store.remove("a", "final")
    assert not store.remove("a", "final")
    assert studies.label_path("a", "final") is None
    assert studies.pool.labelled() == []
    store.restore("a", 1, client="ben")
    assert label(studies) == "first"
    assert [v.number for v in store.versions("a")] == [1, 2, 3]
    assert studies.pool.labelled() == ["a"]
    with pytest.raises(KeyError):
        store.restore("a", 9, client=None)


def test_a_label_that_others_put_there_is_kept_before_it_is_replaced(studies: Studies) -> None:
    dropped = studies.label_folder("final") / "a.nrrd"
    dropped.parent.mkdir(parents=True)
    dropped.write_text("dropped")
    studies.reconcile()
    store = LabelStore(studies)
    save(store, "saved")
    assert [v.file.read_text() for v in store.versions("a")] == ["dropped", "saved"]
    assert [path.name for path in dropped.parent.iterdir()] == ["a.nii.gz"]
    (dropped.parent / "a.nii.gz").write_text("edited in place")  # the kept version must not change with it
    assert store.versions("a")[1].file.read_text() == "saved"
    save(store, "again")
    assert [v.file.read_text() for v in store.versions("a")] == ["dropped", "saved", "edited in place", "again"]


def test_all_files_of_one_label_are_kept_before_they_go(studies: Studies) -> None:
    store = LabelStore(studies)
    save(store, "first")
    folder = studies.label_folder("final")
    (folder / "a.nrrd").write_text("dropped beside it")
    save(store, "second")
    assert [v.file.read_text() for v in store.versions("a")] == ["first", "dropped beside it", "second"]
    (folder / "a.nii").write_text("dropped again")
    store.remove("a", "final")
    assert [v.file.read_text() for v in store.versions("a")][3:] == ["dropped again"]
    assert list(folder.iterdir()) == []


def test_a_label_whose_version_was_lost_is_kept_once_more(studies: Studies) -> None:
    store = LabelStore(studies)
    save(store, "the only copy")
    store.versions("a")[0].file.unlink()
    store.remove("a", "final")
    assert store.versions("a")[-1].file.read_text() == "the only copy"


def test_a_label_stays_where_its_removal_cannot_be_stored(studies: Studies) -> None:
    store = LabelStore(studies)
    save(store, "the label")
    (studies.label_folder("final") / "a.nrrd").write_text("dropped beside it")
    connection = studies.database.connection
    # A deferred constraint is refused by COMMIT itself, as a full disk is.
    connection.executescript(
        """
        PRAGMA foreign_keys = ON;
        CREATE TABLE parents (id INTEGER PRIMARY KEY);
        CREATE TABLE children (id INTEGER REFERENCES parents DEFERRABLE INITIALLY DEFERRED);
        CREATE TRIGGER refuse AFTER DELETE ON labels BEGIN INSERT INTO children VALUES (1); END;
        """
    )
    with pytest.raises(sqlite3.IntegrityError):
        store.remove("a", "final")
    assert label(studies) == "the label"
    assert sorted(path.name for path in studies.label_folder("final").iterdir()) == ["a.nii.gz", "a.nrrd"]
    assert len(list((studies.database.folder / "versions" / "a").iterdir())) == 1
    assert studies.pool.labelled() == ["a"]


def test_pre_segmentations_have_no_versions_and_label_nothing(studies: Studies) -> None:
    store = LabelStore(studies)
    save(store, "guess", tag="original")
    assert label(studies, tag="original") == "guess"
    assert store.versions("a") == []
    assert studies.pool.labelled() == []


def test_an_unknown_image_leaves_nothing_behind(studies: Studies) -> None:
    store = LabelStore(studies)
    with pytest.raises(KeyError):
        save(store, "label", image="nowhere")
    assert list(studies.label_folder("final").iterdir()) == []


def test_own_saves_are_no_news_to_the_index(studies: Studies) -> None:
    save(LabelStore(studies), "label")
    assert studies.reconcile() == 0
    assert studies.check(["a"], [("final", "a")]) == 0


def test_leftovers_of_killed_saves_are_no_labels_and_go_after_an_hour(
    studies: Studies, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = LabelStore(studies).incoming("final")
    half.write_text("half")
    unwritten = half.with_name(f".{half.name}.tmp")  # by write_label
    unwritten.write_text("ha")
    old = half.with_name("old label")
    old.write_text("old")
    os.utime(old, (time.time() - 7200,) * 2)
    backup = half.with_name(".previous-x.nii.gz")
    backup.hardlink_to(old)  # as a save does with the label that it replaces
    old.unlink()
    series = half.with_name(".previous-y")  # a folder of DICOM files, as of a deletion that was killed
    series.mkdir()
    (series / "1.dcm").write_text("patient")
    assert studies.reconcile() == 0
    studies.remove_leftovers()
    assert sorted(half.parent.iterdir()) == sorted([half, unwritten, backup, series])
    later = time.time() + 3601
    monkeypatch.setattr("svgd_label.pool.files.time.time", lambda: later)
    studies.remove_leftovers()
    assert list(half.parent.iterdir()) == []


def test_a_version_without_a_row_is_adopted_and_never_written_over(studies: Studies) -> None:
    """What a save leaves that was killed between the keeping of the version and the commit."""
    orphan = studies.database.folder / "versions" / "a" / "1.nii.gz"
    orphan.parent.mkdir(parents=True)
    orphan.write_text("of a killed save")
    store = LabelStore(studies)
    save(store, "the next")
    assert [v.file.read_text() for v in store.versions("a")] == ["of a killed save", "the next"]


@pytest.mark.parametrize("limit", [1, 100_000, 200_000])
def test_what_the_disk_refuses_changes_nothing(studies: Studies, limit: int) -> None:
    """Files may not grow beyond the limit: first the label itself is refused, then the growing state store."""
    folder = studies.folder
    save(LabelStore(studies), "the good label", image="a")
    output, _ = start(folder, "anna", 40, limit).communicate(timeout=60)
    lines = [line.split() for line in output.splitlines()]
    assert any(line[0] == "refused" for line in lines)
    last = {line[0]: line[2] for line in lines if line[0] != "refused"}
    again = reopened(folder)
    for image, digest in last.items():
        assert sha(studies.label_folder("final") / f"{image}.nii.gz") == digest
    if "a" not in last:
        assert label(again) == "the good label"
    names = {path.name for path in studies.label_folder("final").iterdir()}
    assert names == {f"{image}.nii.gz" for image in last} | {"a.nii.gz"}


def test_two_processes_that_save_at_once_lose_no_version(studies: Studies) -> None:
    children = [start(studies.folder, name, 40) for name in ("anna", "ben")]
    lines = [line.split() for child in children for line in child.communicate(timeout=100)[0].splitlines()]
    assert len(lines) == 80
    store = LabelStore(reopened(studies.folder))
    kept = {(v.image, v.number): v for v in store.versions()}
    assert len(kept) == 80
    for image, number, digest in lines:
        assert sha(kept[image, int(number)].file) == digest
    for image in IMAGES:
        newest = max((v for v in kept.values() if v.image == image), key=lambda v: v.number)
        assert label(studies, image) == newest.file.read_text()
        assert studies.pool.overview.image_state(image)["frequency"] == 1


def test_ten_kills_in_the_middle_of_saves(studies: Studies) -> None:
    generator = random.Random(0)
    acknowledged: dict[tuple[str, str], str] = {}
    life: dict[str, int] = {}  # in which an image's last acknowledged save was
    for kill in range(10):
        child = start(studies.folder, f"kill {kill}", 10_000)
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(generator.uniform(0.0, 0.3))
        child.send_signal(signal.SIGKILL)
        lines = [first, *child.stdout.read().splitlines(keepends=True)]
        child.wait()
        for line in lines:
            if line.endswith("\n"):
                image, number, digest = line.split()
                acknowledged[image, number] = digest
                life[image] = kill
        again = reopened(studies.folder)
        store = LabelStore(again)
        kept = {(v.image, str(v.number)): v for v in store.versions()}
        for key, digest in acknowledged.items():
            assert sha(kept[key].file) == digest
        for image in {image for image, _ in acknowledged}:
            # The label is the last that was acknowledged or one begun after it, in this life or one since, and whole.
            content = label(again, image)
            word = content[: len(content) // 5000]
            assert content == word * 5000
            newest = max(int(number) for i, number in acknowledged if i == image)
            assert sha(again.label_folder("final") / f"{image}.nii.gz") == acknowledged[image, str(newest)] or (
                int(word.split()[1]) >= life[image]
            )
        again.database.close()
    assert len(acknowledged) > 10


def test_a_lost_store_is_made_again_from_the_files(studies: Studies) -> None:
    store = LabelStore(studies)
    save(store, "first")
    save(store, "second")
    save(store, "third", image="b")
    path = studies.database.path
    studies.database.close()
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    again = reopened(studies.folder)
    store = LabelStore(again)
    store.adopt_versions()
    assert again.pool.labelled() == ["a", "b"]
    assert label(again) == "second"
    assert [v.file.read_text() for v in store.versions("a")] == ["first", "second"]
