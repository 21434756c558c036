"""The committee that the server uses at present: loaded once for each model version, one caller at a time."""

import logging
import threading
import zlib
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np

from svgd_label import checkpoint
from svgd_label.checkpoint import Checkpoint, CheckpointError, MismatchError, UnreadableError
from svgd_label.device import default_device
from svgd_label.errors import UserError
from svgd_label.inference import Segmentation, segment
from svgd_label.pool import Pool
from svgd_label.pool.files import fingerprint
from svgd_label.tasks import Task

logger = logging.getLogger(__name__)

KEPT = 3
"""Files of so many versions stay on disk."""
PLACES = 8
"""So many images are segmented or wait for it: each holds one of the 40 threads that saves are answered from, too."""
PROPOSALS = 64
"""So many segmentations stay in memory, packed: their maps shrink a hundredfold."""


class CrowdedError(UserError):
    """All places before the committee are taken."""


class Committees:
    """Published committees of one state folder."""

    def __init__(self, pool: Pool, task: Task, folder: Path) -> None:
        self.pool, self.task, self.folder = pool, task, folder
        self.lock = threading.Lock()
        """Held while a committee computes: one inference at a time."""
        self._places = threading.Semaphore(PLACES)
        self._current: Checkpoint | None = None
        self._proposals = _Proposals()

    def file(self, version: int) -> Path:
        """Where a version is written."""
        return self.folder / f"{version:05d}.pt"

    def adopt_shipped(self) -> None:
        """Makes the committee that comes with the package model version 0, where it fits and nothing newer is there."""
        source = checkpoint.shipped(self.task)
        if self.pool.models.newest() is not None or source is None:
            return
        try:
            shipped = checkpoint.load(source, self.task, device=default_device())
        except CheckpointError as error:
            logger.warning("the committee that comes with the package is not used: %s", error)
            return
        checkpoint.save(self.file(0), shipped.committee, self.task, version=0)
        self.pool.models.publish(0, self.file(0), {"origin": "shipped"})

    def adopt_files(self) -> None:
        """Publishes files of the folder that are newer than all versions that are known.

        The index was lost, or a kill came between file and index. The shipped one, version 0, has its own way in.
        """
        first = self.file(self.pool.models.next_version())
        for file in sorted(self.folder.glob("[0-9]*.pt")):
            if file.name < first.name:
                continue
            try:
                found = checkpoint.load(file, self.task, device=default_device())
            except CheckpointError as error:
                logger.warning("not taken over: %s", error)
                continue
            if file != self.file(found.version):
                logger.warning("not taken over: %s is a copy of version %d", file.name, found.version)
                continue
            self.pool.models.publish(found.version, file, {**found.metrics, "origin": "found in the state folder"})

    def current(self) -> Checkpoint | None:
        """The newest committee that can be read; None where there is none. Call it with ``lock`` held."""
        version = self.pool.models.newest()
        if version is None:
            self._current = None
        elif self._current is None or self._current.version != version:
            self._current = self.read_newest()
        return self._current

    def segment(self, path: str, version: int | None = None) -> tuple[int, Segmentation] | None:
        """What a model version, the newest unless another is named, proposes for an image; with that version.

        What was proposed before is not computed again: viewers ask twice, then for the doubt, and each label that comes
        back is compared with its proposal while the annotator already waits for the next one.

        Returns:
            None where there is no committee, or where the version named is neither remembered nor the newest.

        Raises:
            ImageError: the image cannot be used.
            FileNotFoundError: it is not there.
            CrowdedError: too many wait already. Whoever names a version, which no request does, waits with them.
        """
        wanted = self.pool.models.newest() if version is None else version
        content = fingerprint(Path(path))
        if wanted is None:
            return None
        if (known := self._proposals.get((path, content, wanted))) is not None:  # without waiting for its turn
            return wanted, known
        if not self._places.acquire(blocking=version is not None):
            raise CrowdedError(f"{PLACES} images are being segmented or wait for it")
        try:
            with self.lock:
                if (known := self._proposals.get((path, content, wanted))) is not None:
                    return wanted, known
                current = self.current()
                if current is None or version not in (None, current.version):
                    return None
                found = segment(self.task, current.committee, path)
                self._proposals.put((path, content, current.version), found)
            return current.version, found
        finally:
            self._places.release()

    def read_newest(self) -> Checkpoint | None:
        """A copy of one's own of the newest committee that is not damaged, to be trained or watched; None without any.

        Raises:
            UnreadableError: it cannot be read now, which takes no version from anybody.
        """
        while (version := self.pool.models.newest()) is not None:
            file = self.pool.models.file(version)
            try:
                return None if file is None else checkpoint.load(file, self.task, device=default_device())
            except MismatchError as error:
                logger.warning("no committee is used: %s", error)
                return None
            except UnreadableError:
                raise
            except CheckpointError as error:
                logger.error("model version %d is damaged and withdrawn: %s", version, error)
                self.pool.models.withdraw(version)
        return None

    def prune(self) -> None:
        """Removes the files of all but the last versions."""
        for file in sorted(self.folder.glob("[0-9]*.pt"))[:-KEPT]:
            file.unlink(missing_ok=True)


class _Proposals:
    """The last segmentations, packed; whoever comes from another thread meanwhile finds them whole or not at all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._packed: OrderedDict[tuple[str, str, int], tuple[Segmentation, tuple[int, ...], list[bytes]]] = (
            OrderedDict()
        )

    def get(self, key: tuple[str, str, int]) -> Segmentation | None:
        with self._lock:
            found = self._packed.get(key)
        if found is None:
            return None
        bare, shape, packed = found
        labels, bands = (np.frombuffer(zlib.decompress(part), dtype=np.uint8).reshape(shape) for part in packed)
        return replace(bare, labels=labels, bands=bands)

    def put(self, key: tuple[str, str, int], segmentation: Segmentation) -> None:
        maps = (segmentation.labels, segmentation.bands)
        packed = [zlib.compress(np.ascontiguousarray(part).tobytes(), level=1) for part in maps]
        none = np.zeros((0, 0, 0), np.uint8)
        bare = replace(segmentation, labels=none, bands=none)
        with self._lock:
            self._packed[key] = bare, segmentation.labels.shape, packed
            while len(self._packed) > PROPOSALS:
                self._packed.popitem(last=False)
