"""The image series of a DICOMweb server as folders in a studies folder, followed as they come, change and go."""

import contextlib
import fcntl
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import pydicom

from svgd_label.errors import UserError
from svgd_label.pool import Studies
from svgd_label.pool.files import make_folder, sync_folder
from svgd_label.server.dicom.patience import Patience
from svgd_label.server.dicom.web import DicomServer, Series, ServerError, is_uid

logger = logging.getLogger(__name__)

INFO = ("Modality", "StudyDate", "PatientID", "StudyInstanceUID", "SeriesInstanceUID")
"""What a viewer needs to find the series; OHIF's panel jumps by it."""
LOOK_SECONDS = 60
"""Between two questions to the server; less where MONAI Label's setting for its lists is less."""
COUNT = "NumberOfSeriesRelatedInstances"
"""Beside them: by it a series that has changed on the server is known."""
LOST_AT_MOST = 2
"""In a row the server may not give out so many, before it counts as away."""
INCOMING = "incoming"
"""Folder in the state folder for what is not whole yet; emptied at start."""
_NO_IMAGES = ("SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "SR", "KO", "PR", "REG", "FID", "DOC", "AU", "ECG")
_ANNOUNCE_SECONDS = 10.0
_LONGEST_PAUSE = 3600.0


class Mirror:
    """Keeps ``studies.folder/SERIES_UID/INSTANCE_UID.dcm`` as the server has them, in a thread.

    An answer that lists no series at all counts as an outage: nothing here is removed for it. A series that others
    are listed without leaves the pool; its label stays where it is. One that cannot be fetched keeps no other away. Of
    several servers over one state folder one does this, and another goes on where that ends.

    Args:
        server: who is asked.
        studies: index over the mirrored folder.
        search_filter: which series, as MONAI Label's setting has it.
        pause: seconds between two questions.
        changing: held while a series comes, changes or goes.
        on_change: called after series have come or gone; must not take long.
        on_answer: called whenever the server answers again after an outage.
        look_further: called with each answer, after the series are here; may raise ``ServerError``.
    """

    def __init__(
        self,
        server: DicomServer,
        studies: Studies,
        search_filter: Mapping[str, Any],
        *,
        pause: float,
        changing: contextlib.AbstractContextManager[Any],
        on_change: Callable[[], None],
        on_answer: Callable[[], None],
        look_further: Callable[[], None],
    ) -> None:
        self._server = server
        self._studies = studies
        self._filter = dict(search_filter)
        self._pause = pause
        self._changing = changing
        self._on_change = on_change
        self._on_answer = on_answer
        self._look_further = look_further
        self._incoming = studies.database.folder / INCOMING
        self._outage: str | None = None
        self._counts: dict[str, int | None] = {}
        self._unlisted: set[str] = set()
        self._patience: Patience[str] = Patience(2 * pause, _LONGEST_PAUSE)

    def start(self) -> None:
        """Asks at once and then again and again, until the process ends."""
        threading.Thread(target=self._run, name="dicom-mirror", daemon=True).start()

    def synchronise(self) -> None:
        """Asks once, and takes over what is new, has changed or is gone."""
        try:
            listed = {s.uid: s for s in self._server.series(self._filter) if s.modality not in _NO_IMAGES}
        except ServerError as error:
            self._failed(str(error))
            return
        if not listed:
            self._failed(f"the DICOM server {self._server.url} lists no image series for the search filter")
            return
        if self._outage is not None:
            logger.info("The DICOM server answers again and lists %d image series.", len(listed))
            self._outage = None
            self._on_answer()
        known = self._known()
        gone = known.keys() - listed.keys()
        # One answer that lacks a series, from a server that is starting, say, must not take it from who draws on it.
        changed = [self._withdraw(uid) for uid in sorted(gone & self._unlisted)]
        self._unlisted = gone
        wanted = [s for s in listed.values() if s.uid not in known or s.instances not in (None, known[s.uid])]
        announced, lost = time.monotonic(), 0
        for series in wanted:
            if not self._is_due(series, is_first=not known and not self._counts):
                continue
            try:
                self._fetch(series)
            except Exception as error:  # whatever is wrong with one must not keep the others away
                self._put_off(series, error)
                lost += isinstance(error, ServerError) and error.is_outage
                if lost == LOST_AT_MOST:  # rather the server's fault than theirs: the next look asks for others
                    break
                continue
            self._patience.done(series.uid)
            changed.append(True)
            lost = 0
            if time.monotonic() > announced + _ANNOUNCE_SECONDS:  # the first images need not wait for the last
                self._on_change()
                announced, changed = time.monotonic(), []
        self._counts = {uid: series.instances for uid, series in listed.items()}
        if any(changed):
            self._on_change()
        try:
            self._look_further()
        except ServerError as error:
            self._failed(str(error))

    def _run(self) -> None:
        with (self._studies.database.folder / "mirror.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.warning("Another server with this state folder follows the DICOM server; this one waits.")
                fcntl.flock(lock, fcntl.LOCK_EX)
            shutil.rmtree(self._incoming, ignore_errors=True)  # what a killed server left
            self._follow()

    def _follow(self) -> None:
        while True:
            try:
                self.synchronise()
            except Exception:  # what one answer does must not end the asking
                logger.exception("The DICOM server's series could not be followed.")
            time.sleep(self._pause)

    def _failed(self, sentence: str) -> None:
        if self._outage != sentence:
            logger.warning("%s: images and labels stay as they are; it is asked again.", sentence)
        self._outage = sentence

    def _known(self) -> dict[str, int]:
        """Series that are here, with the number of instances that was announced when they were fetched."""
        found = {}
        for row in self._studies.database.connection.execute(
            f"SELECT image, json_extract(info, '$.{COUNT}') AS count FROM images WHERE present = 1 AND ext = ''"
        ):
            uid = row["image"]
            if not is_uid(uid):
                continue
            if isinstance(row["count"], int):
                found[uid] = row["count"]
            else:  # the index was lost and made again from the files, or a client of an earlier version wrote there
                with contextlib.suppress(Exception):  # whatever is wrong with it must not keep the others away
                    self._describe(uid, None)
                found[uid] = len(list((self._studies.folder / uid).glob("*.dcm")))
        return found

    def _is_due(self, series: Series, *, is_first: bool) -> bool:
        """Not while it is still being stored there, and not again at once where it could not be fetched.

        At the first look over a new state, all that the server has is taken to be whole, or nobody could begin.
        """
        if not is_first and self._counts.get(series.uid, -1) != series.instances:
            return False
        return self._patience.is_due(series.uid)

    def _put_off(self, series: Series, error: Exception) -> None:
        if self._patience.put_off(series.uid):
            why = error if isinstance(error, UserError | OSError | ValueError) else type(error).__name__
            logger.warning("The series %s could not be fetched (%s); it is tried again.", series.uid, why)

    def _fetch(self, series: Series) -> None:
        """All files into a folder beside, then one rename: killed at any point, the series is whole or not there."""
        temporary = self._incoming / series.uid
        shutil.rmtree(temporary, ignore_errors=True)
        make_folder(temporary)
        count = 0
        for instance in self._server.instances(series):
            uid = str(instance.get("SOPInstanceUID", ""))
            if str(instance.get("SeriesInstanceUID", "")) != series.uid or not is_uid(uid):
                raise ValueError("the server sent another series")
            with (temporary / f"{uid}.dcm").open("wb") as file:
                pydicom.dcmwrite(file, instance, write_like_original=False)
                file.flush()
                os.fsync(file.fileno())
            count += 1
        if not count or count < (series.instances or 0):
            raise ValueError(f"{count} of {series.instances} files came")
        sync_folder(temporary)
        target, previous = self._studies.folder / series.uid, self._incoming / f"{series.uid}.previous"
        shutil.rmtree(previous, ignore_errors=True)  # of a try that could not be committed
        # No label of the old series is stored for the new one; the watcher never sees the moment between.
        with self._changing, self._studies.database.transaction():
            if target.exists():
                target.rename(previous)
            temporary.rename(target)
            sync_folder(target.parent)
            self._studies.check([series.uid], [])
            self._describe(series.uid, series.instances)
        shutil.rmtree(previous, ignore_errors=True)
        logger.info("Fetched the series %s, %d files.", series.uid, count)

    def _describe(self, uid: str, instances: int | None) -> None:
        files = sorted((self._studies.folder / uid).glob("*.dcm"))
        head = pydicom.dcmread(files[0], stop_before_pixels=True, specific_tags=list(INFO))
        info = {name: str(head.get(name) or "") for name in INFO}
        self._studies.update_info(uid, {**info, COUNT: len(files) if instances is None else instances})

    def _withdraw(self, uid: str) -> bool:
        make_folder(self._incoming)
        removed = self._incoming / f"{uid}.withdrawn"
        shutil.rmtree(removed, ignore_errors=True)
        try:
            with self._changing, self._studies.database.transaction():
                with contextlib.suppress(FileNotFoundError):
                    (self._studies.folder / uid).rename(removed)
                self._studies.check([uid], [])
        except OSError as error:
            logger.warning("The series %s is gone from the server and cannot be removed here: %s.", uid, error)
            return False
        shutil.rmtree(removed, ignore_errors=True)
        logger.info("The series %s is no longer listed by the server and leaves the pool; a label of it is kept.", uid)
        return True
