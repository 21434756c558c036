"""SEGs that are on the server and not known here, such as OHIF's own "store segmentation": labels, each once."""

import datetime
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from fastapi import HTTPException
from pydicom import Dataset

from svgd_label.errors import UserError
from svgd_label.images import geometry
from svgd_label.labels import ConvertedLabel, write_label
from svgd_label.pool import FINAL
from svgd_label.server.datastore import SafeDatastore
from svgd_label.server.dicom.patience import Patience
from svgd_label.server.dicom.segmentation import (
    SegmentationError,
    is_of_task,
    is_ours,
    read_segmentation,
    referenced_series,
)
from svgd_label.server.dicom.web import DicomServer, Series, ServerError

logger = logging.getLogger(__name__)

CLIENT = "DICOM server"
_FIRST_PAUSE, _LONGEST_PAUSE = 120.0, 3600.0
_CLOCKS_APART = 60.0  # seconds that the clock of who wrote a SEG may be ahead


class Takeover:
    """Looks for SEG series that were not there before and show a mirrored series.

    Each is looked at once, and a row of ``segmentations`` says so; one of a series that is not here, when that comes.
    One that is older than the label that is here or than another one changes nothing. One of ours does only where it is
    of this task and the image never had a label here: then the state was lost, or is another.

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
        self._elsewhere: dict[str, str] = {}  # SEG -> the series that it shows, which is not here
        self._told: set[str] = set()
        self._patience: Patience[str] = Patience(_FIRST_PAUSE, _LONGEST_PAUSE)

    def look(self) -> None:
        """Asks once.

        Raises:
            ServerError: the server is away.
        """
        newest: dict[str, tuple[float, Series, str]] = {}
        for series in self._unseen():
            with self._each(series):
                for instance in self._server.instances(series):
                    self._consider(series, instance, newest)
        taken = []
        for image, (written, series, uid) in newest.items():
            with self._each(series):
                taken.append(self._take(image, series, uid, written))
        if any(taken):
            self._on_label()

    @contextmanager
    def _each(self, series: Series) -> Iterator[None]:
        """Whatever is wrong with one series keeps no other away, and is tried again."""
        try:
            yield
        except Exception as error:
            if self._patience.put_off(series.uid):
                why = error if isinstance(error, UserError | OSError) else type(error).__name__
                logger.warning("The SEG series %s could not be read (%s); it is tried again.", series.uid, why)
        else:
            self._patience.done(series.uid)

    def _consider(self, series: Series, instance: Dataset, newest: dict[str, tuple[float, Series, str]]) -> None:
        image = referenced_series(instance) or ""
        if self._store.studies.image_path(image) is None:
            self._elsewhere[series.uid] = image
            if not image:
                logger.warning("The SEG series %s does not say which series it shows, and is passed over.", series.uid)
        elif is_ours(instance) and not (is_of_task(instance, self._task) and self._is_new(image)):
            self._note(image, series, "ours")
        else:
            other = newest.get(image)
            this = (_written(instance), series, str(instance.SOPInstanceUID))
            older = this if other is not None and this[0] < other[0] else other
            if older is not None:
                self._note(image, older[1], "older")
            if older is not this:
                newest[image] = this

    def _unseen(self) -> list[Series]:
        seen = {row["series"] for row in self._database.connection.execute("SELECT series FROM segmentations")}
        try:
            listed = self._server.series({"Modality": "SEG"})
        except ServerError as error:
            self._pass_on(error)
            return []
        here = self._store.studies.image_path
        return [
            series
            for series in listed
            if series.modality == "SEG"
            and series.uid not in seen
            and self._patience.is_due(series.uid)
            and (series.uid not in self._elsewhere or here(self._elsewhere[series.uid]) is not None)
        ]

    def _pass_on(self, error: ServerError) -> None:
        """An outage is the caller's; of what the server cannot do it is told once."""
        if error.is_outage:
            raise error
        if str(error) not in self._told:
            self._told.add(str(error))
            logger.warning("SEGs of other programs cannot be taken over: %s", error)

    def _take(self, image: str, series: Series, uid: str, written: float) -> bool:
        if self._is_older(image, written):
            self._note(image, series, "older")
            return False
        for instance in self._server.instances(series):
            if instance.SOPInstanceUID != uid:
                continue
            try:
                if not self._save(image, series, instance, written):
                    return False
            except (UserError, HTTPException) as error:
                why = str(getattr(error, "detail", error))
                logger.warning("A SEG of %s on the DICOM server is not taken over: %s", image, why)
                if not isinstance(error, HTTPException) or error.status_code < 500:  # else the disk is full, for now
                    self._note(image, series, "refused", why)
                return False
            logger.info("A SEG on the DICOM server is now the label of %s.", image)
            return True
        return False

    def _is_older(self, image: str, written: float) -> bool:
        """Whether the label that is here was saved after a SEG was written."""
        label = self._database.connection.execute(
            "SELECT saved FROM labels WHERE image = ? AND tag = ?", (image, FINAL)
        ).fetchone()
        return label is not None and label["saved"] >= written

    def _is_new(self, image: str) -> bool:
        """Whether the image never had a label here."""
        found = self._database.connection.execute("SELECT 1 FROM label_versions WHERE image = ?", (image,)).fetchone()
        return found is None

    def _note(self, image: str, series: Series, state: str, why: str | None = None) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO segmentations (image, fingerprint, state, why, series) VALUES (?, ?, ?, ?, ?)",
                (image, series.uid, state, why, series.uid),
            )

    def _save(self, image: str, series: Series, instance: Dataset, written: float) -> bool:
        shape, affine = geometry(self._store.get_image_uri(image))
        try:
            numbers, segments = read_segmentation(instance, shape, affine)
        except (AttributeError, KeyError, ValueError, TypeError, IndexError, NotImplementedError) as error:
            if isinstance(error, SegmentationError):
                raise
            raise SegmentationError(f"it cannot be read ({type(error).__name__})") from error
        with (
            tempfile.TemporaryDirectory() as folder,
            self._store.changing,  # as every save: the lock first, then the transaction
            self._database.transaction() as connection,
        ):
            if self._is_older(image, written):  # saved while this one came
                self._note(image, series, "older")
                return False
            file = Path(folder) / "label.nii.gz"
            write_label(ConvertedLabel(numbers.astype(np.uint8), affine, [], []), file)
            info = {"label_info": [{"name": name, "idx": number} for name, number in segments], "client_id": CLIENT}
            SafeDatastore.save_label(self._store, image, str(file), FINAL, info)
            # In the same transaction, so that it is never sent back.
            connection.execute(
                "INSERT INTO segmentations (image, fingerprint, number, state, series, instance) "
                "SELECT image, fingerprint, number, 'theirs', ?, ? FROM labels WHERE image = ? AND tag = ?",
                (series.uid, str(instance.SOPInstanceUID), image, FINAL),
            )
        return True


def _written(instance: Dataset) -> float:
    """When a SEG was written, in seconds since 1970; infinite where it does not say.

    Some programs write the local time, some UTC. It has only just come, so the later of the two is believed, unless
    that is still to come.
    """
    try:
        second, fraction = str(instance.ContentTime)[:6], float(f"0{str(instance.ContentTime)[6:]}")
        moment = datetime.datetime.strptime(f"{instance.ContentDate}{second}", "%Y%m%d%H%M%S")
        moment += datetime.timedelta(seconds=fraction)
    except (AttributeError, ValueError):
        return float("inf")
    readings = sorted((moment.timestamp(), moment.replace(tzinfo=datetime.timezone.utc).timestamp()))
    return readings[1] if readings[1] <= time.time() + _CLOCKS_APART else readings[0]
