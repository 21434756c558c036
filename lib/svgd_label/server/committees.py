"""The committee that the server uses at present: loaded once for each model version, one caller at a time."""

import logging
import threading
from pathlib import Path

from svgd_label import checkpoint
from svgd_label.checkpoint import Checkpoint, CheckpointError, MismatchError
from svgd_label.device import default_device
from svgd_label.pool import Pool
from svgd_label.tasks import Task

logger = logging.getLogger(__name__)

KEPT = 3
"""Files of so many versions stay on disk."""


class Committees:
    """Published committees of one state folder."""

    def __init__(self, pool: Pool, task: Task, folder: Path) -> None:
        self.pool, self.task, self.folder = pool, task, folder
        self.lock = threading.Lock()
        """Held while a committee computes: one inference at a time."""
        self._current: Checkpoint | None = None

    def file(self, version: int) -> Path:
        """Where a version is written."""
        return self.folder / f"{version:05d}.pt"

    def adopt_shipped(self) -> None:
        """Makes the committee that comes with the package model version 0, where it fits and nothing newer is there."""
        source = checkpoint.shipped(self.task)
        if self.pool.model_version() is not None or source is None:
            return
        try:
            shipped = checkpoint.load(source, self.task, device=default_device())
        except CheckpointError as error:
            logger.warning("the committee that comes with the package is not used: %s", error)
            return
        checkpoint.save(self.file(0), shipped.committee, self.task, version=0)
        self.pool.publish(0, self.file(0), {"origin": "shipped"})

    def adopt_files(self) -> None:
        """Publishes again what lies in the folder, where the index of versions was lost."""
        if self.pool.model_version() is not None:
            return
        for file in sorted(self.folder.glob("[0-9]*.pt")):
            if file == self.file(0):  # the shipped one has its own way in
                continue
            try:
                found = checkpoint.load(file, self.task, device=default_device())
            except CheckpointError as error:
                logger.warning("not taken over: %s", error)
                continue
            self.pool.publish(found.version, file, {"origin": "found in the state folder"})

    def current(self) -> Checkpoint | None:
        """The newest committee that can be read; None where there is none. Call it with ``lock`` held."""
        version = self.pool.model_version()
        if version is None:
            self._current = None
        elif self._current is None or self._current.version != version:
            self._current = self.read_newest()
        return self._current

    def read_newest(self) -> Checkpoint | None:
        """A copy of one's own of the newest committee that can be read, to be trained or watched; None without any."""
        while (version := self.pool.model_version()) is not None:
            file = self.pool.committee_file(version)
            try:
                return None if file is None else checkpoint.load(file, self.task, device=default_device())
            except MismatchError as error:
                logger.warning("no committee is used: %s", error)
                return None
            except CheckpointError as error:
                logger.error("model version %d is damaged and withdrawn: %s", version, error)
                self.pool.withdraw(version)
        return None

    def prune(self) -> None:
        """Removes the files of all but the last versions."""
        for file in sorted(self.folder.glob("[0-9]*.pt"))[:-KEPT]:
            file.unlink(missing_ok=True)
