"""The state store: one SQLite file that threads and processes share and that survives a kill at any moment."""

import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil

from svgd_label.errors import UserError
from svgd_label.pool.schema import DERIVED, KEPT, STEPS

logger = logging.getLogger(__name__)

BUSY_SECONDS = 60.0
"""Patience of a writer: on a crowded machine the one who holds the lock, at low priority, may hardly get to run."""
_LOOK_SECONDS = 0.002
_NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "9p", "afs", "ceph", "lustre", "glusterfs", "gpfs", "beegfs", "davfs")
_NETWORK_FUSE = ("sshfs", "glusterfs", "ceph", "s3fs", "rclone", "davfs", "gcsfuse", "smb")


class StateError(UserError):
    """The state folder cannot be used as it is."""


def on_network(path: Path) -> str | None:
    """Type of the network file system that holds ``path``, or None for a local one."""
    resolved = path.resolve()
    mounts = [m for m in psutil.disk_partitions(all=True) if resolved.is_relative_to(m.mountpoint)]
    kind = max(mounts, key=lambda m: len(m.mountpoint)).fstype.lower() if mounts else ""
    remote = kind.startswith(_NETWORK_FILE_SYSTEMS) or (kind.startswith("fuse.") and kind[5:].startswith(_NETWORK_FUSE))
    return kind if remote else None


class Database:
    """``folder/state.sqlite``, with a connection of its own for each thread.

    A file that is damaged is moved aside as ``state.sqlite.damaged-TIME`` and an empty one takes its place
    (``moved_aside`` names it); the caller then reads images and labels from the folder again.

    Args:
        folder: the state folder; made where it does not exist.
        task: name of the task it belongs to; None opens it whatever its task is.

    Raises:
        StateError: the state is another task's, of a newer program, not writable, or damaged while in use.
    """

    def __init__(self, folder: Path, *, task: str | None = None) -> None:
        self.folder = folder
        self.path = folder / "state.sqlite"
        self.moved_aside: Path | None = None
        self._local = threading.local()
        self._writing = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Opening is one process's at a time; being open is everybody's, and forbids moving the file aside.
            self._in_use = (folder / "in-use.lock").open("a")
            with (folder / "opening.lock").open("a") as opening:
                fcntl.flock(opening, fcntl.LOCK_EX)
                self._open(task)
        except (OSError, sqlite3.OperationalError) as error:
            raise StateError(
                f"The state folder {folder} cannot be used ({error}): make it writable, "
                "free some space there, or give another with --conf state FOLDER."
            ) from error

    @property
    def connection(self) -> sqlite3.Connection:
        """This thread's connection, for reading."""
        # A forked child must not touch its parent's connection.
        if getattr(self._local, "process", None) != os.getpid():
            self._local.connection = self._connect()
            self._local.process = os.getpid()
            self._local.depth = 0
        connection: sqlite3.Connection = self._local.connection
        return connection

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, and alone among writers; one inside another is a part of it."""
        connection = self.connection
        if self._local.depth:
            yield connection
            return
        # SQLite lets who waits sleep, longer each time, and serves whoever wakes first. With locks he is awake in time,
        # between threads (8 writers, 5 ms each: p99 50 in place of 400 ms) and between server and scoring.
        with self._writing, self._one_process():
            connection.execute("BEGIN IMMEDIATE")
            self._local.depth = 1
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException as error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                if type(error) is sqlite3.DatabaseError:
                    self._suspect.touch()
                raise
            finally:
                self._local.depth = 0

    @contextmanager
    def _one_process(self) -> Iterator[None]:
        """Holds the lock of the writers of all processes; one that dies lets go of it."""
        with (self.folder / "writing.lock").open("a") as writing:
            deadline = time.monotonic() + BUSY_SECONDS
            while True:
                try:
                    fcntl.flock(writing, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise sqlite3.OperationalError("database is locked") from None
                    time.sleep(_LOOK_SECONDS)
            yield

    def get(self, key: str) -> str | None:
        """A value of the table ``meta``."""
        row = self.connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row["value"])

    def set(self, key: str, value: str) -> None:
        """Writes a value of the table ``meta``."""
        with self.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def close(self) -> None:
        """Closes this thread's connection; others go with their threads."""
        if getattr(self._local, "process", None) == os.getpid():
            self._local.connection.close()
            self._local.process = None

    @property
    def _suspect(self) -> Path:
        """A file whose being there asks the next start to check all tables, the large ones too."""
        return self.folder / "state.sqlite.suspect"

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _open(self, task: str | None) -> None:
        try:
            self._prepare()
        except sqlite3.DatabaseError as error:
            # What a path or the disk refuses is an OperationalError; the class itself says "malformed", "no database".
            if type(error) is not sqlite3.DatabaseError:
                raise
            self._move_aside(self._in_use, str(error))
            self._prepare()
        self._suspect.unlink(missing_ok=True)
        fcntl.flock(self._in_use, fcntl.LOCK_SH)
        if task is None:
            return
        found = self.get("task")
        if found is None:
            self.set("task", task)
        elif found != task:
            raise StateError(
                f'The state folder {self.folder} was made for the task "{found}", not "{task}": '
                f"start with --conf task {found}, or give another folder with --conf state FOLDER."
            )

    def _prepare(self) -> None:
        """Brings the file to this program's schema; sqlite3.DatabaseError where it is damaged."""
        connection = self.connection
        network = on_network(self.folder)
        mode = "delete" if network else "wal"
        if network:
            logger.warning(
                "The state folder %s lies on a network file system (%s): it is kept without a write-ahead log, "
                "which is slower; a local folder is better (--conf state FOLDER).",
                self.folder,
                network,
            )
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != mode:
            connection.execute(f"PRAGMA journal_mode = {mode}")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > len(STEPS):
            raise StateError(
                f"{self.path} was written by a newer version of SVGD Label (schema {version}, "
                f"this one knows {len(STEPS)}): update SVGD Label, or give another folder with --conf state FOLDER."
            )
        # The derived tables may hold gigabytes, and what they hold can be had again: checked only where suspected.
        # A table that a later step makes is not there yet.
        made = {row["name"] for row in connection.execute("SELECT name FROM sqlite_master")}
        for table in made.intersection(KEPT + (DERIVED if self._suspect.exists() else ())):
            verdict = connection.execute(f"PRAGMA quick_check({table})").fetchone()[0]
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
        for number, step in enumerate(STEPS[version:], start=version + 1):
            connection.executescript(f"BEGIN IMMEDIATE; {step} PRAGMA user_version = {number}; COMMIT;")

    def _move_aside(self, in_use: IO[str], reason: str) -> None:
        self.close()
        try:
            fcntl.flock(in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StateError(
                f"{self.path} is damaged ({reason}) and still in use by another process: stop the server and "
                "start it again, and it will rebuild the file from the images and labels."
            ) from error
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
        while aside.exists():
            aside = aside.with_name(aside.name + "x")
        for suffix in ("", "-wal", "-shm"):
            part = self.path.with_name(self.path.name + suffix)
            if part.exists():
                part.rename(aside.with_name(aside.name + suffix))
        self.moved_aside = aside
        logger.warning(
            "%s was damaged (%s). It now stands as %s, and a new one is made from the images and labels; "
            "frequencies, the choice of validation images and flags start anew.",
            self.path,
            reason,
            aside.name,
        )
