"""What is still to be sent: each final label as a DICOM SEG to the server that holds its series."""

import logging
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.uid import generate_uid

from svgd_label.errors import UserError
from svgd_label.labels import convert_label
from svgd_label.pool import FINAL, Studies
from svgd_label.server.dicom.patience import Patience
from svgd_label.server.dicom.segmentation import Origin, make_segmentation
from svgd_label.server.dicom.web import DicomServer, ServerError
from svgd_label.tasks import Task

logger = logging.getLogger(__name__)

EMPTY = "an empty label, which no SEG can hold; it is kept and counted here"
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 900.0
_LOOK_SECONDS = 30.0  # for labels that came by other means than a save

_Key = tuple[str, str]


@dataclass(frozen=True)
class _Label:
    """A final label of a mirrored series, as its file lies there now."""

    image: str
    fingerprint: str
    number: int | None
    file: Path
    model_version: int | None

    @property
    def key(self) -> _Key:
        return self.image, self.fingerprint


class Outbox:
    """Sends labels in a thread, the oldest first, and again with growing pauses until the server has taken them.

    What is to be sent is every final label whose file has no row "sent", "empty" or "theirs" (it came as a SEG) in the
    table ``segmentations``: nothing has to be queued, so no kill can lose an entry. A newer label takes the place of
    one that waits; a deleted one is not sent. UIDs are stored before the first try, so that a label which arrived
    although the answer was lost is not stored twice.
    """

    def __init__(self, server: DicomServer, studies: Studies, task: Task) -> None:
        self._server = server
        self._studies = studies
        self._database = studies.database
        self._task = task
        self._wake = threading.Event()
        self._patience: Patience[_Key] = Patience(_FIRST_PAUSE, _LONGEST_PAUSE)

    def start(self) -> None:
        """Sends until the process ends."""
        threading.Thread(target=self._run, name="dicom-outbox", daemon=True).start()

    def wake(self) -> None:
        """A label was saved."""
        self._wake.set()

    def retry(self) -> None:
        """The server is back: whatever waits is tried at once."""
        self._patience.keep([])
        self._wake.set()

    def send(self) -> None:
        """Tries once each label that is due."""
        waiting = self._waiting()
        self._patience.keep({label.key for label in waiting})
        for label in waiting:
            if not self._patience.is_due(label.key):
                continue
            try:
                self._send(label)
                self._patience.done(label.key)
            except ServerError as error:
                self._put_off(label, "waiting" if error.is_outage else "failed", str(error))
                if error.is_outage:
                    return
            except (UserError, OSError) as error:
                self._put_off(label, "failed", str(error))

    def states(self) -> dict[str, dict[str, Any]]:
        """Image -> what has become of its final label's SEG."""
        rows = self._database.connection.execute(
            "SELECT l.image, s.state, s.why, s.attempts, s.series, s.instance FROM labels l "
            "LEFT JOIN segmentations s ON s.image = l.image AND s.fingerprint = l.fingerprint WHERE l.tag = ?",
            (FINAL,),
        )
        return {row["image"]: _state(row) for row in rows}

    def state(self, image: str) -> dict[str, Any]:
        """As ``states``, of one image; empty where it has no final label."""
        row = self._database.connection.execute(
            "SELECT s.state, s.why, s.attempts, s.series, s.instance FROM labels l "
            "LEFT JOIN segmentations s ON s.image = l.image AND s.fingerprint = l.fingerprint "
            "WHERE l.tag = ? AND l.image = ?",
            (FINAL, image),
        ).fetchone()
        return {} if row is None else _state(row)

    def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                self.send()
            except Exception:  # one label must not end the sending
                logger.exception("Labels could not be sent to the DICOM server.")
            self._wake.wait(min(max(self._patience.seconds(), 0.1), _LOOK_SECONDS))

    def _waiting(self) -> list[_Label]:
        rows = self._database.connection.execute(
            "SELECT l.image, l.fingerprint, l.number, l.ext, v.model_version FROM labels l "
            "JOIN images i ON i.image = l.image AND i.present = 1 AND i.ext = '' "
            "LEFT JOIN label_versions v ON v.image = l.image AND v.number = l.number "
            "LEFT JOIN segmentations s ON s.image = l.image AND s.fingerprint = l.fingerprint "
            "WHERE l.tag = ? AND (s.state IS NULL OR s.state IN ('waiting', 'failed')) ORDER BY l.saved",
            (FINAL,),
        ).fetchall()
        folder = self._studies.label_folder(FINAL)
        return [
            _Label(
                row["image"], row["fingerprint"], row["number"], folder / f"{row['image']}{row['ext']}",
                row["model_version"],
            )
            for row in rows
        ]  # fmt: skip

    def _send(self, label: _Label) -> None:
        image = self._studies.folder / label.image
        converted = convert_label(label.file, None, image=image, labels=self._task.labels, aliases=self._task.aliases)
        if not converted.array.any():
            self._record(label, "empty", EMPTY)
            return
        series, instance, replaces = self._uids(label)
        segmentation = make_segmentation(
            image,
            converted.array,
            converted.affine,
            self._task.labels,
            series_uid=series,
            instance_uid=instance,
            origin=Origin(self._task.name, label.number, label.model_version, replaces),
        )
        self._server.store(segmentation)
        self._record(label, "sent", None)
        logger.info("The SEG of the label of %s is on the DICOM server.", label.image)

    def _uids(self, label: _Label) -> tuple[str, str, bool]:
        """UIDs of series and instance, durable, and whether an earlier SEG of ours is on the server."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO segmentations (image, fingerprint, number, state) VALUES (?, ?, ?, 'waiting')",
                (*label.key, label.number),
            )
            connection.execute(
                "UPDATE segmentations SET series = COALESCE(series, ?), instance = COALESCE(instance, ?), "
                "attempts = attempts + 1 WHERE image = ? AND fingerprint = ?",
                (generate_uid(), generate_uid(), *label.key),
            )
            row = connection.execute(
                "SELECT series, instance FROM segmentations WHERE image = ? AND fingerprint = ?", label.key
            ).fetchone()
            earlier = connection.execute(
                "SELECT 1 FROM segmentations WHERE image = ? AND fingerprint != ? AND state IN ('sent', 'superseded')",
                label.key,
            ).fetchone()
        return row["series"], row["instance"], earlier is not None

    def _record(self, label: _Label, state: str, why: str | None) -> None:
        """The outcome; whatever was sent of this image before is superseded by it."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO segmentations (image, fingerprint, number, state, why) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET state = excluded.state, why = excluded.why",
                (*label.key, label.number, state, why),
            )
            if state in ("sent", "empty"):
                connection.execute(
                    "UPDATE segmentations SET state = 'superseded', why = NULL WHERE image = ? AND fingerprint != ? "
                    "AND state IN ('waiting', 'failed', 'sent', 'empty')",
                    label.key,
                )

    def _put_off(self, label: _Label, state: str, why: str) -> None:
        self._patience.put_off(label.key)
        if self.state(label.image).get("why") != why:
            logger.warning("The SEG of the label of %s waits here: %s. It is tried again.", label.image, why)
        self._record(label, state, why)


def _state(row: sqlite3.Row) -> dict[str, Any]:
    return {
        "state": row["state"] or "waiting",
        "why": row["why"],
        "attempts": row["attempts"] or 0,
        "SeriesInstanceUID": row["series"],
        "SOPInstanceUID": row["instance"],
    }
