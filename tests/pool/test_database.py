"""The state store opens, refuses, recovers and serves several processes."""

import logging
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from svgd_label.pool import Database, StateError, on_network
from svgd_label.pool.schema import STEPS


def test_another_task_is_refused_with_what_to_do(tmp_path: Path) -> None:
    Database(tmp_path, task="hippocampus")
    with pytest.raises(StateError, match=r'made for the task "hippocampus".*--conf task hippocampus.*--conf state'):
        Database(tmp_path, task="pancreas")
    assert Database(tmp_path).get("task") == "hippocampus"


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    Database(tmp_path, task="t").connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StateError, match="newer version of SVGD Label"):
        Database(tmp_path, task="t")
    assert not list(tmp_path.glob("*.damaged-*"))


@pytest.mark.parametrize("released", range(1, len(STEPS)))
def test_a_store_of_an_older_program_is_migrated_with_all_it_holds(tmp_path: Path, released: int) -> None:
    old = sqlite3.connect(tmp_path / "state.sqlite")
    for number, step in enumerate(STEPS[:released], start=1):
        old.executescript(f"BEGIN; {step} PRAGMA user_version = {number}; COMMIT;")
    old.execute("INSERT INTO images (image, name, ext, fingerprint) VALUES ('a', 'a.nii', '.nii', '1:1')")
    old.commit()
    old.close()
    database = Database(tmp_path, task="t")
    assert database.moved_aside is None
    assert database.connection.execute("PRAGMA user_version").fetchone()[0] == len(STEPS)
    assert [row["image"] for row in database.connection.execute("SELECT image FROM images")] == ["a"]
    assert database.connection.execute("SELECT COUNT(*) FROM segmentations").fetchone()[0] == 0


def test_commits_are_flushed_and_readers_do_not_wait(database: Database) -> None:
    assert database.connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert database.connection.execute("PRAGMA synchronous").fetchone()[0] == 2
    assert on_network(database.folder) is None


def test_no_write_ahead_log_on_a_network_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("svgd_label.pool.database.on_network", lambda _: "nfs4")
    database = Database(tmp_path, task="t")
    database.set("key", "value")
    assert database.connection.execute("PRAGMA journal_mode").fetchone()[0] == "delete"
    assert "network file system (nfs4)" in caplog.text


def test_the_innermost_mount_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Mount:
        def __init__(self, mountpoint: str, fstype: str) -> None:
            self.mountpoint, self.fstype = mountpoint, fstype

    mounts = [Mount("/", "ext4"), Mount(str(tmp_path), "nfs4"), Mount(str(tmp_path / "disk"), "xfs")]
    mounts.append(Mount(str(tmp_path / "fuse"), "fuse.sshfs"))
    monkeypatch.setattr("psutil.disk_partitions", lambda all: mounts)
    assert on_network(tmp_path / "studies") == "nfs4"
    assert on_network(tmp_path / "disk" / "studies") is None
    assert on_network(tmp_path / "fuse" / "x") == "fuse.sshfs"
    assert on_network(Path("/elsewhere")) is None


@pytest.mark.parametrize("damage", ["text", "torn pages"])
def test_a_damaged_file_is_moved_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    first = Database(tmp_path, task="t")
    with first.transaction() as connection:
        connection.executemany(
            "INSERT INTO images (image, name, ext, fingerprint) VALUES (?, '', '', '')", [(f"{i}",) for i in range(999)]
        )
    first.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path = first.path
    first.close()
    del first
    content = path.read_bytes()
    torn = content[:8192] + b"\xff" * (len(content) - 8192)
    path.write_bytes(b"this is no database at all" * 300 if damage == "text" else torn)
    with caplog.at_level(logging.WARNING):
        second = Database(tmp_path, task="t")
    assert second.moved_aside is not None
    assert second.moved_aside.stat().st_size > 0
    assert "was damaged" in caplog.text
    assert second.connection.execute("SELECT COUNT(*) FROM images").fetchone()[0] == 0
    assert Database(tmp_path, task="t").moved_aside is None


def test_a_damaged_file_that_is_in_use_is_not_moved_away_from_its_user(tmp_path: Path) -> None:
    user = Database(tmp_path, task="t")
    user.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    user.path.write_bytes(b"nothing that SQLite knows" * 400)
    with pytest.raises(StateError, match="still in use by another process"):
        Database(tmp_path, task="t")
    assert not list(tmp_path.glob("*.damaged-*"))


def test_damage_in_derived_tables_is_looked_for_after_it_was_met(tmp_path: Path) -> None:
    first = Database(tmp_path, task="t")
    with pytest.raises(sqlite3.DatabaseError), first.transaction():
        raise sqlite3.DatabaseError("database disk image is malformed")
    assert (tmp_path / "state.sqlite.suspect").exists()
    first.close()
    assert Database(tmp_path, task="t").moved_aside is None
    assert not (tmp_path / "state.sqlite.suspect").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match=r"file/state cannot be used.*--conf state"):
        Database(tmp_path / "file" / "state", task="t")


def test_an_error_undoes_all_of_a_transaction_inner_ones_too(database: Database) -> None:
    def fail_after_an_inner_one() -> None:
        with database.transaction():
            database.set("inner", "1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_after_an_inner_one()
    assert database.get("inner") is None
    with database.transaction():
        database.set("outer", "2")
    assert database.get("outer") == "2"


def test_each_thread_has_its_connection(database: Database) -> None:
    def count() -> None:
        for _ in range(50):
            with database.transaction():
                database.set("count", str(int(database.get("count") or 0) + 1))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert database.get("count") == "200"


def test_processes_that_open_and_write_at_once_lose_nothing(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from svgd_label.pool import Database
database = Database(Path(sys.argv[1]), task="t")
for _ in range(50):
    with database.transaction():
        database.set("count", str(int(database.get("count") or 0) + 1))
"""
    children = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(3)]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    assert Database(tmp_path, task="t").get("count") == "150"
