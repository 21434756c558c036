"""The life of a label: saved so that no kill can cost it, every version kept, deleted and restored."""

import contextlib
import json
import logging
import sqlite3
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svgd_label.pool.files import (
    EXTENSIONS,
    PREVIOUS,
    copy_durably,
    fingerprint,
    incoming,
    is_plain_id,
    make_folder,
    second_name,
    split_extension,
    sync_folder,
)
from svgd_label.pool.studies import FINAL, ORIGINAL, Studies

logger = logging.getLogger(__name__)

STORED = ".nii.gz"


@dataclass(frozen=True)
class LabelVersion:
    """One version of a label: who saved it when, what it was corrected from, and the Dice between the two."""

    image: str
    number: int
    tag: str
    file: Path
    saved: float
    client: str | None
    model_version: int | None
    dice: float | None


class LabelStore:
    """Label files, their rows and their versions in ``STATE/versions/IMAGE/NUMBER.nii.gz``.

    A pre-segmentation (tag ``original``) comes from a committee that can make it again: of it, no versions are kept.
    """

    def __init__(self, studies: Studies) -> None:
        self._studies = studies
        self._pool = studies.pool
        self._database = studies.database
        self._versions = self._database.folder / "versions"

    def incoming(self, tag: str) -> Path:
        """Where a label is written before it is handed to ``save``: same folder, hidden."""
        folder = self._studies.label_folder(tag)
        make_folder(folder)
        return incoming(folder, STORED)

    def save(
        self, image: str, tag: str, file: Path, *, info: dict[str, Any], client: str | None, model_version: int | None
    ) -> LabelVersion | None:
        """Puts a complete, flushed file from ``incoming`` in place; returns when file and row are durable.

        Killed at any point, the label is the old one or the new one, and whole. Where ``model_version`` is None it is
        the version that last inferred this image.

        Returns:
            The version that was made; None for the tag ``original``.

        Raises:
            KeyError: no such image.
            OSError, sqlite3.OperationalError: no space, read-only; the old label is there as it was.
        """
        target = self._studies.label_folder(tag) / f"{image}{STORED}"
        backup = target.with_name(f"{PREVIOUS}{file.name}")
        present: list[Path] = []
        made: list[Path] = []
        try:
            with self._database.transaction() as connection:
                row = connection.execute(
                    "SELECT inferred_version FROM images WHERE image = ? AND present = 1", (image,)
                ).fetchone()
                if row is None:
                    raise KeyError(image)
                saved = time.time()
                version = None
                present = self._files(image, tag)
                if tag != ORIGINAL:
                    self._keep_present(connection, image, tag, present, made)
                    corrected = row["inferred_version"] if model_version is None else model_version
                    version = self._keep(connection, image, tag, file, saved, client, corrected, made)
                if target.exists():
                    second_name(target, backup)
                file.replace(target)
                made.append(target)
                sync_folder(target.parent)
                connection.execute(
                    "INSERT OR REPLACE INTO labels VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        image,
                        tag,
                        STORED,
                        fingerprint(target),
                        json.dumps({**info, "ts": int(saved), "name": target.name}, default=str),
                        saved,
                        None if version is None else version.number,
                    ),
                )
                if tag == FINAL:
                    self._pool.label_saved(image)
        except BaseException:
            if backup.exists():
                with contextlib.suppress(OSError):
                    backup.replace(target)
                    made = [path for path in made if path != target]
            for path in (*made, file):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            raise
        with contextlib.suppress(OSError):
            backup.unlink(missing_ok=True)
            for other in present:
                if other != target:
                    other.unlink(missing_ok=True)
        return version

    def remove(self, image: str, tag: str) -> bool:
        """Deletes a label; its versions stay. False where there is none.

        Raises:
            OSError, sqlite3.OperationalError: no space, read-only; the label is there as it was.
        """
        aside: dict[Path, Path] = {}
        made: list[Path] = []
        try:
            with self._database.transaction() as connection:
                # Whether the image is there or not: deleting it has taken it away before.
                known = connection.execute("SELECT 1 FROM labels WHERE image = ? AND tag = ?", (image, tag)).fetchone()
                if known is None:
                    return False
                present = self._files(image, tag)
                if tag != ORIGINAL:
                    self._keep_present(connection, image, tag, present, made)
                # A commit can fail, and an unlinked file cannot be put back.
                for file in present:
                    aside[file] = file.with_name(f"{PREVIOUS}{uuid.uuid4().hex}{STORED}")
                    file.rename(aside[file])
                sync_folder(self._studies.label_folder(tag))
                connection.execute("DELETE FROM labels WHERE image = ? AND tag = ?", (image, tag))
                if tag == FINAL:
                    self._pool.label_removed(image)
        except BaseException:
            for file, moved in aside.items():
                with contextlib.suppress(OSError):
                    moved.rename(file)
            for path in made:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            raise
        with contextlib.suppress(OSError):
            for moved in aside.values():
                moved.unlink(missing_ok=True)
        return True

    def in_place(self) -> dict[str, LabelVersion | None]:
        """Image -> the version that its final label is, by id; None for one that came by other means than a save."""
        versions: dict[tuple[str, int | None], LabelVersion] = {(v.image, v.number): v for v in self.versions()}
        found = {}
        for row in self._database.connection.execute(
            "SELECT image, number, fingerprint FROM labels WHERE tag = ? ORDER BY image", (FINAL,)
        ).fetchall():
            file = self._studies.label_path(row["image"], FINAL)
            # It may have been exchanged since a server has last read the folder.
            is_that = file is None or not file.is_file() or fingerprint(file) == row["fingerprint"]
            found[row["image"]] = versions.get((row["image"], row["number"])) if is_that else None
        return found

    def saved_between(self, after: float, until: float) -> int:
        """How many images have a final label that was saved in this time, in seconds since the epoch.

        A label that was dropped into the folder counts by the time of its file.
        """
        found = self._database.connection.execute(
            "SELECT COUNT(*) FROM labels JOIN images USING (image) "
            "WHERE tag = ? AND saved > ? AND saved <= ? AND present = 1",
            (FINAL, after, until),
        )
        return int(found.fetchone()[0])

    def versions(self, image: str | None = None) -> list[LabelVersion]:
        """All versions of one image's labels, or of all, oldest first."""
        rows = self._database.connection.execute(
            "SELECT * FROM label_versions WHERE ? IS NULL OR image = ? ORDER BY image, number", (image, image)
        )
        return [_version(row, self._versions) for row in rows]

    def restore(self, image: str, number: int, *, client: str | None) -> LabelVersion | None:
        """Makes an older version the label again, as a new version.

        Raises:
            KeyError: no such image or version.
        """
        version = next((v for v in self.versions(image) if v.number == number), None)
        if version is None:
            raise KeyError(f"{image}, version {number}")
        if split_extension(version.file.name)[1] != STORED:
            raise ValueError(f"version {number} of {image} is a {version.file.suffix} file: convert and save it")
        file = self.incoming(version.tag)
        copy_durably(version.file, file)
        info = {"restored": number, "client_id": client}
        return self.save(image, version.tag, file, info=info, client=client, model_version=version.model_version)

    def record_dice(self, image: str, number: int, dice: float) -> None:
        """Notes the Dice between a version and what the committee had proposed."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE label_versions SET dice = ? WHERE image = ? AND number = ?", (dice, image, number)
            )

    def adopt_versions(self) -> None:
        """Makes rows for version files that have none, after the store was lost; who saved them is not known."""
        if not self._versions.is_dir():
            return
        with self._database.transaction() as connection:
            for folder in self._versions.iterdir():
                if folder.is_dir() and is_plain_id(folder.name):
                    _adopt(connection, folder)

    def _files(self, image: str, tag: str) -> list[Path]:
        """The files that lie there as the label, the one that counts first."""
        paths = [self._studies.label_folder(tag) / f"{image}{extension}" for extension in EXTENSIONS]
        return [path for path in paths if path.is_file()]

    def _keep_present(
        self, connection: sqlite3.Connection, image: str, tag: str, present: list[Path], made: list[Path]
    ) -> None:
        """Keeps the files in place that are no version yet: they came by other means than ``save``."""
        row = connection.execute(
            "SELECT l.ext, l.fingerprint, v.file FROM labels l JOIN label_versions v USING (image, number) "
            "WHERE image = ? AND l.tag = ?",
            (image, tag),
        ).fetchone()
        is_kept = row is not None and (self._versions / image / row["file"]).is_file()
        for file in reversed(present):  # the one that counts becomes the newest version
            if not is_kept or (row["ext"], row["fingerprint"]) != (split_extension(file.name)[1], fingerprint(file)):
                self._keep(connection, image, tag, file, file.stat().st_mtime, None, None, made)

    def _keep(
        self,
        connection: sqlite3.Connection,
        image: str,
        tag: str,
        file: Path,
        saved: float,
        client: str | None,
        model_version: int | None,
        made: list[Path],
    ) -> LabelVersion:
        folder = self._versions / image
        make_folder(folder)
        _adopt(connection, folder)  # a killed save leaves a version without a row, which must not be written over
        last = connection.execute("SELECT MAX(number) AS n FROM label_versions WHERE image = ?", (image,)).fetchone()
        number = (last["n"] or 0) + 1
        name = f"{number}{'' if tag == FINAL else '-' + tag}{split_extension(file.name)[1]}"
        copy_durably(file, folder / name)
        made.append(folder / name)
        values = (image, number, tag, name, saved, client, model_version, None)
        connection.execute("INSERT INTO label_versions VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
        return LabelVersion(image, number, tag, folder / name, saved, client, model_version, None)


def _adopt(connection: sqlite3.Connection, folder: Path) -> None:
    """Rows for the version files of one image that have none."""
    for file in folder.iterdir():
        stem, extension = split_extension(file.name)
        number, _, tag = stem.partition("-")
        if extension and number.isdecimal():
            connection.execute(
                "INSERT OR IGNORE INTO label_versions VALUES (?, ?, ?, ?, ?, NULL, NULL, NULL)",
                (folder.name, int(number), tag or FINAL, file.name, file.stat().st_mtime),
            )


def _version(row: sqlite3.Row, folder: Path) -> LabelVersion:
    values = dict(row)
    return LabelVersion(**{**values, "file": folder / row["image"] / row["file"]})
