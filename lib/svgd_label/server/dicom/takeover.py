"""SEGs that are on the server and not known here, such as OHIF's own "store segmentation": labels, each once."""

import contextlib
import dataclasses
import datetime
import logging
import math
import sqlite3
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from fastapi import HTTPException
from pydicom import Dataset

from svgd_label.errors import UserError
from svgd_label.images import geometry
from svgd_label.labels import ConvertedLabel, write_label
from svgd_label.pool import FINAL
from svgd_label.pool.files import make_folder
from svgd_label.server.datastore import SafeDatastore
from svgd_label.server.dicom.mirror import INCOMING, LOST_AT_MOST
from svgd_label.server.dicom.patience import Patience
from svgd_label.server.dicom.segmentation import (
    HEAD,
    SegmentationError,
    is_automatic,
    is_of_task,
    is_ours,
    read_segmentation,
    referenced_series,
)
from svgd_label.server.dicom.web import DicomServer, Series, ServerError

logger = logging.getLogger(__name__)

CLIENT = "DICOM server"
_FIRST_PAUSE, _LONGEST_PAUSE = 120.0, 3600.0
_NEVER = 0.0
_CLOCKS_APART = 60.0  # seconds that the clock of who wrote a SEG may be ahead


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """A SEG that may become a label; when it was written, in seconds since 1970, may be known but for the time zone."""

    series: Series
    uid: str
    readings: tuple[float, float]
    is_automatic: bool
    written: float = _NEVER

    @property
    def standing(self) -> float:
        """By which the better of two is known: what people drew is better than what a program found, at any time."""
        return _NEVER if self.is_automatic else self.written


class Takeover:
    """Looks for SEGs that were not there before and show a mirrored series.

    Each is looked at once, and a row of ``segmentations`` says so; one of a series that is not here, when that comes.
    One that is older than the label that is here or than another one changes nothing, nor does one that a program made
    without a person where there is a label. One of ours does only where it is of this task and the image never had a
    label here, or has one that came as a SEG: then the state was lost, or is another. What fails for the moment is
    tried again and keeps no other SEG away; a newer one still replaces an older one that was taken meanwhile.

    Args:
        server: who is asked.
        task: name of the task.
        store: where a label goes, through the same checks as an upload.
        on_label: called after labels were taken over.
    """

    def __init__(self, server: DicomServer, task: str, store: SafeDatastore, on_label: Callable[[], None]) -> None:
        self._server = server
        self._task = task
        self._store = store
        self._database = store.pool.database
        self._on_label = on_label
        # SEG series -> instance -> the series that it shows, which is not here.
        self._elsewhere: defaultdict[str, dict[str, str]] = defaultdict(dict)
        self._told: set[str] = set()
        self._patience: Patience[str] = Patience(_FIRST_PAUSE, _LONGEST_PAUSE)
        self._lost = 0

    def look(self) -> None:
        """Asks once.

        Raises:
            ServerError: the server is away.
        """
        self._lost = 0
        candidates: defaultdict[str, list[_Candidate]] = defaultdict(list)
        for series in self._unseen():
            unread: list[str] = []
            with self._each(series.uid):
                unread = self._unread(series)
                self._patience.done(series.uid)
            for uid in unread:
                with self._each(uid):
                    head = self._server.head(series, uid, HEAD)
                    self._lost = 0
                    self._consider(series, uid, head, candidates)
        taken = False
        try:
            for image, found in candidates.items():
                taken |= self._take_best(image, found)
        finally:
            if taken:
                self._on_label()

    @contextlib.contextmanager
    def _each(self, uid: str) -> Iterator[None]:
        """Whatever is wrong with one series or instance keeps no other away, and is tried again."""
        try:
            yield
        except Exception as error:
            if self._patience.put_off(uid):
                why = (
                    _sentence(error) if isinstance(error, UserError | OSError | HTTPException) else type(error).__name__
                )
                logger.warning("The SEG %s could not be read (%s); it is tried again.", uid, why)
            if isinstance(error, ServerError) and error.is_outage:
                self._lost += 1
                if self._lost == LOST_AT_MOST:  # rather the server's fault, which may take a minute to fail each time
                    raise

    def _unseen(self) -> list[Series]:
        """SEG series with instances of which nothing is known here, or which show a series that has come."""
        # A row without an instance is of an earlier version, which looked at a series once.
        rows = self._database.connection.execute(
            "SELECT series, MAX(COUNT(instance), 1) AS number FROM segmentations WHERE series IS NOT NULL "
            "GROUP BY series"
        )
        seen = {row["series"]: row["number"] for row in rows}
        try:
            listed = self._server.series({"Modality": "SEG"})
        except ServerError as error:
            self._pass_on(error)
            return []

        def is_due(series: Series) -> bool:
            elsewhere = self._elsewhere[series.uid]
            known = seen.get(series.uid, 0) + len(elsewhere)
            is_new = not known or (series.instances or 0) > known
            return (is_new or any(map(self._is_here, elsewhere.values()))) and self._patience.is_due(series.uid)

        return [series for series in listed if series.modality == "SEG" and is_due(series)]

    def _unread(self, series: Series) -> list[str]:
        rows = self._database.connection.execute("SELECT instance FROM segmentations WHERE series = ?", (series.uid,))
        known = {row["instance"] for row in rows}
        known |= {uid for uid, image in self._elsewhere[series.uid].items() if not self._is_here(image)}
        return [
            uid for uid in self._server.instance_uids(series) if uid not in known and self._patience.is_due(uid)
        ]  # fmt: skip

    def _pass_on(self, error: ServerError) -> None:
        """An outage is the caller's; of what the server cannot do it is told once."""
        if error.is_outage:
            raise error
        if str(error) not in self._told:
            self._told.add(str(error))
            logger.warning("SEGs of other programs cannot be taken over: %s", error)

    def _consider(
        self, series: Series, uid: str, head: Dataset, candidates: defaultdict[str, list[_Candidate]]
    ) -> None:
        image = referenced_series(head) or ""
        candidate = _Candidate(series, uid, _readings(head), is_automatic(head))
        if not self._is_here(image):
            self._elsewhere[series.uid][uid] = image
            if not image:
                logger.warning("The SEG series %s does not say which series it shows, and is passed over.", series.uid)
            return
        self._elsewhere[series.uid].pop(uid, None)
        if is_ours(head) and not (is_of_task(head, self._task) and self._may_be_lost(image)):
            self._note(image, candidate, "ours")
        else:
            candidates[image].append(candidate)

    def _is_here(self, image: str) -> bool:
        return self._store.studies.image_path(image) is not None

    def _may_be_lost(self, image: str) -> bool:
        """Whether a SEG of ours may hold more than is here: no label was ever saved here, or it came as a SEG too."""
        read = self._database.connection.execute
        if read("SELECT 1 FROM label_versions WHERE image = ?", (image,)).fetchone() is None:
            return True
        label = self._label(image)
        return label is not None and label["state"] == "theirs"

    def _label(self, image: str) -> sqlite3.Row | None:
        """The final label: when it was saved, and whether and as what it is known to the server."""
        row: sqlite3.Row | None = self._database.connection.execute(
            "SELECT l.saved, s.state, s.written FROM labels l "
            "LEFT JOIN segmentations s ON s.image = l.image AND s.fingerprint = l.fingerprint "
            "WHERE l.image = ? AND l.tag = ?",
            (image, FINAL),
        ).fetchone()
        return row

    def _take_best(self, image: str, candidates: list[_Candidate]) -> bool:
        """Takes the best that is accepted, after which the others are older."""
        taken = False
        for candidate in sorted(_dated(candidates), key=lambda c: (c.standing, c.written), reverse=True):
            with self._each(candidate.uid):
                if taken:
                    self._note(image, candidate, "older")
                else:
                    taken = self._take(image, candidate)
        return taken

    def _take(self, image: str, candidate: _Candidate) -> bool:
        if self._is_outdone(image, candidate):
            return False
        instance = self._server.instance(candidate.series, candidate.uid)
        self._lost = 0
        try:
            if not self._save(image, candidate, instance):
                return False
        except (UserError, HTTPException) as error:
            if _is_passing(error):
                raise
            logger.warning("A SEG of %s on the DICOM server is not taken over: %s", image, _sentence(error))
            self._note(image, candidate, "refused", _sentence(error))
            return False
        logger.info("A SEG on the DICOM server is now the label of %s.", image)
        return True

    def _is_outdone(self, image: str, candidate: _Candidate) -> bool:
        """Whether the label that is here stays, which is then noted."""
        label = self._label(image)
        if label is None:
            return False
        if candidate.is_automatic:
            why = "no person drew it, and the image has a label"
            logger.warning("A SEG of %s on the DICOM server is not taken over: %s.", image, why)
            self._note(image, candidate, "refused", why)
            return True
        # When a label was taken over says nothing of its age.
        if (label["saved"] if label["written"] is None else label["written"]) < candidate.written:
            return False
        self._note(image, candidate, "older")
        return True

    def _note(self, image: str, candidate: _Candidate, state: str, why: str | None = None) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO segmentations (image, fingerprint, state, why, series, instance) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (image, candidate.uid, state, why, candidate.series.uid, candidate.uid),
            )

    def _save(self, image: str, candidate: _Candidate, instance: Dataset) -> bool:
        shape, affine = geometry(self._store.get_image_uri(image))
        try:
            numbers, segments = read_segmentation(instance, shape, affine)
        except (AttributeError, KeyError, ValueError, TypeError, IndexError, NotImplementedError) as error:
            if isinstance(error, SegmentationError):
                raise
            raise SegmentationError(f"it cannot be read ({type(error).__name__})") from error
        room = self._database.folder / INCOMING
        make_folder(room)
        with (
            tempfile.TemporaryDirectory(dir=room) as folder,
            self._store.changing,  # as every save: the lock first, then the transaction
            self._database.transaction() as connection,
        ):
            if self._is_outdone(image, candidate):  # saved while this one came
                return False
            file = Path(folder) / "label.nii.gz"
            write_label(ConvertedLabel(numbers.astype(np.uint8), affine, [], []), file)
            info = {"label_info": [{"name": name, "idx": number} for name, number in segments], "client_id": CLIENT}
            SafeDatastore.save_label(self._store, image, str(file), FINAL, info)
            # In the same transaction, so that it is never sent back. No committee of ours proposed what it shows.
            connection.execute(
                "INSERT INTO segmentations (image, fingerprint, number, state, series, instance, written) "
                "SELECT image, fingerprint, number, 'theirs', ?, ?, ? FROM labels WHERE image = ? AND tag = ?",
                (candidate.series.uid, candidate.uid, min(candidate.standing, time.time()), image, FINAL),
            )
            connection.execute(
                "UPDATE label_versions SET model_version = NULL "
                "WHERE (image, number) = (SELECT image, number FROM labels WHERE image = ? AND tag = ?)",
                (image, FINAL),
            )
        return True


def _is_passing(error: BaseException | None) -> bool:
    """Whether another time it may go well: the disk is full, memory is short, the image has just gone."""
    while error is not None:
        if isinstance(error, HTTPException) and error.status_code != 400:
            return True
        if isinstance(error, OSError | MemoryError) or getattr(error, "passing", False):
            return True
        error = error.__cause__
    return False


def _sentence(error: Exception) -> str:
    return str(getattr(error, "detail", error))


def _dated(candidates: list[_Candidate]) -> list[_Candidate]:
    """The SEGs of one image, dated: the later reading, since they have only just come, unless that is still to come.

    The same reading for all, so that their order is kept.
    """
    now = time.time() + _CLOCKS_APART
    reading = 0 if any(now < c.readings[1] < math.inf for c in candidates) else 1
    return [dataclasses.replace(c, written=c.readings[reading]) for c in candidates]


def _readings(instance: Dataset) -> tuple[float, float]:
    """When a SEG was written, in seconds since 1970: the earlier and the later reading; infinite where it does not say.

    Some programs write the local time, as this one does, some UTC, and few say which.
    """
    try:
        second, fraction = str(instance.ContentTime)[:6], float(f"0{str(instance.ContentTime)[6:]}")
        moment = datetime.datetime.strptime(f"{instance.ContentDate}{second}", "%Y%m%d%H%M%S")
        moment += datetime.timedelta(seconds=fraction)
    except (AttributeError, ValueError):
        return math.inf, math.inf
    local = moment.timestamp()
    with contextlib.suppress(ValueError):
        if offset := instance.get("TimezoneOffsetFromUTC"):
            local = datetime.datetime.strptime(f"{moment:%Y%m%d%H%M%S}{offset}", "%Y%m%d%H%M%S%z").timestamp()
            return local, local
    if is_ours(instance):
        return local, local
    utc = moment.replace(tzinfo=datetime.timezone.utc).timestamp()
    return min(local, utc), max(local, utc)
