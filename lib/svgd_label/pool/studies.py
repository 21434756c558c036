"""Index of the images and labels in a studies folder, and how it follows what happens to the files."""

import contextlib
import json
import logging
import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.misc import is_dicom

from svgd_label.errors import UserError
from svgd_label.pool.files import (
    EXTENSIONS,
    fingerprint_of,
    is_plain_id,
    is_plain_tag,
    remove_leftovers,
    split_extension,
)
from svgd_label.pool.overview import IMAGE_CHANGED
from svgd_label.pool.pool import Pool

logger = logging.getLogger(__name__)

FINAL = "final"
ORIGINAL = "original"
_OUTSIDE = ("labels", "logs", "model", "lib", "bin")
_FILES_ASKED = 5

LabelKey = tuple[str, str]  # (tag, image)


@dataclass(frozen=True)
class _File:
    """A file or folder as it lies there."""

    name: str
    ext: str
    fingerprint: str
    modified: float


class Studies:
    """Rows of ``images`` and ``labels`` for the top level of ``folder`` and for ``folder/labels/TAG``.

    Images are ``ID.nii.gz``, ``ID.nii``, ``ID.nrrd``, or folders ``ID`` with DICOM files in them. No image is opened.

    Args:
        folder: what is in it.
        pool: whose images they are.
        links: whether links are followed that lead out of the folder. A server follows none: they could show any file
            of its machine.
    """

    def __init__(self, folder: Path, pool: Pool, *, links: bool = False) -> None:
        self.folder = folder
        self._links = links
        self.labels_folder = folder / "labels"
        self.pool = pool
        self.database = pool.database
        self._warned: set[str] = set()

    def label_folder(self, tag: str) -> Path:
        """Where the labels of a tag lie.

        Raises:
            UserError: a link leads to somewhere outside the studies folder instead.
        """
        if not self._has_inside(tag):
            raise UserError(f"The folder of the tag {tag} is a link that leads out of the studies folder")
        return self.labels_folder / tag

    def image_path(self, image: str) -> Path | None:
        """An image's file or folder; None for an image that is not there."""
        row = self.database.connection.execute(
            "SELECT name FROM images WHERE image = ? AND present = 1", (image,)
        ).fetchone()
        path = None if row is None else self.folder / row["name"]
        return path if path is not None and self._is_inside(path) else None

    def label_path(self, image: str, tag: str) -> Path | None:
        """A label's file; None where there is none."""
        row = self.database.connection.execute(
            "SELECT l.ext FROM labels l JOIN images i USING (image) WHERE l.image = ? AND l.tag = ? AND i.present = 1",
            (image, tag),
        ).fetchone()
        if row is None or not self._has_inside(tag):
            return None
        path = self.label_folder(tag) / f"{image}{row['ext']}"
        return path if self._is_inside(path) else None

    def reconcile(self) -> int:
        """Compares the whole folder with the index and takes over what differs; how many entries did.

        The folder is read once and without a lock. Only what seems to differ is looked at again, as the sole writer,
        so that no save that happens meanwhile can be undone.
        """
        try:
            images = set(self._changed_images())
            labels = set(self._changed_labels())
        except OSError as error:
            logger.warning("The folder %s cannot be read (%s): the list of images stays as it was.", self.folder, error)
            return 0
        return self.check(images, labels)

    def check(self, images: Iterable[str], labels: Iterable[LabelKey]) -> int:
        """Takes over the present state of some images' and labels' files; how many rows changed."""
        images = sorted(image for image in set(images) if self._can_be_id(image))
        labels = sorted(key for key in set(labels) if self._can_be_id(key[1]))
        if not images and not labels:
            return 0
        with self.database.transaction() as connection:
            replaced: list[str] = []
            changed = sum(self._check_image(connection, image, replaced) for image in images)
            finals: list[str] = []
            changed += sum(self._check_label(connection, tag, image, finals) for tag, image in labels)
            self.pool.labels_found(finals)
            for image in replaced:
                if self.pool.overview.image_state(image)["image_changed"]:
                    logger.warning("%s: %s.", image, IMAGE_CHANGED)
        return changed

    def remove_leftovers(self) -> None:
        """Removes what killed processes left unfinished."""
        for folder in (self.folder, *(self.label_folder(tag) for tag in self.tags())):
            remove_leftovers(folder)

    def tags(self) -> list[str]:
        """Tags that have a folder."""
        if not self.labels_folder.is_dir():
            return []
        found = (e.name for e in os.scandir(self.labels_folder) if is_plain_tag(e.name) and e.is_dir())
        return sorted(tag for tag in found if self._has_inside(tag))

    def import_index(self, file: Path) -> None:
        """Takes the infos out of MONAI Label's ``datastore_v2.json``, once; the file stays as it is."""
        if self.database.get("imported") is not None or not file.exists():
            return
        with self.database.transaction() as connection:
            try:
                # NaN, which Python's JSON knows, could not be sent to a client again.
                content = json.loads(file.read_text(encoding="utf-8"), parse_constant=lambda _: None)
                entries = content.get("objects", {}).items()
            except (OSError, ValueError, AttributeError) as error:
                logger.warning("%s cannot be read (%s: %s) and is left alone.", file, type(error).__name__, error)
                content, entries = {}, ()
            for key in ("name", "description"):
                if isinstance(content.get(key), str):
                    self.database.set(key, content[key])
            for image, entry in entries:
                try:
                    _merge(connection, "images", entry["image"].get("info", {}), "image = ?", (image,))
                    for tag, label in entry.get("labels", {}).items():
                        _merge(connection, "labels", label.get("info", {}), "image = ? AND tag = ?", (image, tag))
                except (ValueError, AttributeError, KeyError, TypeError) as error:
                    reason = f"{type(error).__name__}: {error}"
                    logger.warning("The entry %r in %s cannot be read (%s) and is left out.", image, file, reason)
            self.database.set("imported", file.name)

    def update_info(self, image: str, info: dict[str, Any]) -> bool:
        """Merges into an image's info; False for an image that is not known."""
        with self.database.transaction() as connection:
            return _merge(connection, "images", info, "image = ? AND present = 1", (image,))

    def update_label_info(self, image: str, tag: str, info: dict[str, Any]) -> bool:
        """Merges into a label's info; False for a label that is not known."""
        with self.database.transaction() as connection:
            return _merge(connection, "labels", info, "image = ? AND tag = ?", (image, tag))

    def _changed_images(self) -> Iterator[str]:
        rows = self.database.connection.execute("SELECT image, name, fingerprint FROM images WHERE present = 1")
        known = {row["name"]: (row["image"], row["fingerprint"]) for row in rows}
        for entry in os.scandir(self.folder):
            image, ext = split_extension(entry.name)
            if entry.name in known:
                if _fingerprint(entry) == known[entry.name][1]:
                    del known[entry.name]
            elif ext or (not entry.name.startswith(".") and entry.name not in _OUTSIDE and entry.is_dir()):
                yield image
        for image, _ in known.values():
            yield image

    def _changed_labels(self) -> Iterator[LabelKey]:
        rows = self.database.connection.execute("SELECT image, tag, ext, fingerprint FROM labels")
        known = {(row["tag"], row["image"]): (row["ext"], row["fingerprint"]) for row in rows}
        for tag in self.tags():
            for entry in os.scandir(self.label_folder(tag)):
                image, ext = split_extension(entry.name)
                if not ext:
                    continue
                if known.get((tag, image)) == (ext, _fingerprint(entry)):
                    del known[tag, image]
                else:
                    yield tag, image
        yield from known

    def _check_image(self, connection: sqlite3.Connection, image: str, replaced: list[str]) -> bool:
        row = connection.execute("SELECT name, fingerprint, present FROM images WHERE image = ?", (image,)).fetchone()
        file = self._find_image(image, known_folder=row is not None and row["name"] == image)
        if file is None:
            if row is None or not row["present"]:
                return False
            logger.info("The image %s is gone.", image)
            connection.execute("UPDATE images SET present = 0 WHERE image = ?", (image,))
            return True
        if row is None:
            info = json.dumps({"ts": int(file.modified), "name": file.name})
            connection.execute(
                "INSERT INTO images (image, name, ext, fingerprint, info) VALUES (?, ?, ?, ?, ?)",
                (image, file.name, file.ext, file.fingerprint, info),
            )
            return True
        if (row["name"], row["fingerprint"], row["present"]) == (file.name, file.fingerprint, 1):
            return False
        connection.execute(
            "UPDATE images SET name = ?, ext = ?, fingerprint = ?, present = 1 WHERE image = ?",
            (file.name, file.ext, file.fingerprint, image),
        )
        if (row["name"], row["fingerprint"]) != (file.name, file.fingerprint):
            logger.info("The file of the image %s is another one.", image)
            self.pool.content_changed(image)
            replaced.append(image)
        return True

    def _check_label(self, connection: sqlite3.Connection, tag: str, image: str, finals: list[str]) -> bool:
        if not self._has_inside(tag):  # what is behind a link is not known to be gone
            return False
        known = connection.execute("SELECT present FROM images WHERE image = ?", (image,)).fetchone()
        row = connection.execute(
            "SELECT ext, fingerprint FROM labels WHERE image = ? AND tag = ?", (image, tag)
        ).fetchone()
        file = self._find_file(self.label_folder(tag), image)
        if known is None:
            if file is not None:
                self._warn(f"The label {tag}/{image} belongs to no image and is left alone.")
            return False
        if file is None:
            # Together with its image it may be a share that dropped out: then the label is not taken for deleted.
            if row is None or not known["present"]:
                return False
            logger.info("The label %s/%s is gone.", tag, image)
            connection.execute("DELETE FROM labels WHERE image = ? AND tag = ?", (image, tag))
            if tag == FINAL:
                self.pool.label_removed(image)
            return True
        if row is not None and (row["ext"], row["fingerprint"]) == (file.ext, file.fingerprint):
            return False
        info = json.dumps({"ts": int(file.modified), "name": file.name})
        connection.execute(
            "INSERT OR REPLACE INTO labels VALUES (?, ?, ?, ?, ?, ?, NULL)",
            (image, tag, file.ext, file.fingerprint, info, file.modified),
        )
        if tag == FINAL:
            finals.append(image)
        return True

    def _find_image(self, image: str, *, known_folder: bool) -> _File | None:
        file = self._find_file(self.folder, image)
        folder = self.folder / image
        if (
            image in _OUTSIDE
            or not folder.is_dir()
            or not self._is_inside(folder)
            or (file is None and not (known_folder or _holds_dicom(folder)))
        ):
            return file
        if file is None:
            status = folder.stat()
            return _File(image, "", fingerprint_of(status), status.st_mtime)
        return file

    def _find_file(self, folder: Path, image: str) -> _File | None:
        """The file with an id, where there are several the one whose extension comes first."""
        found = []
        for ext in EXTENSIONS:
            path = folder / f"{image}{ext}"
            with contextlib.suppress(OSError):  # gone, or a link that leads to itself
                status = path.stat()
                if stat.S_ISREG(status.st_mode) and self._is_inside(path):
                    found.append(_File(path.name, ext, fingerprint_of(status), status.st_mtime))
        for other in found[1:]:
            self._warn(f"{folder / other.name} is left out: {found[0].name} has the same id.")
        return found[0] if found else None

    def _has_inside(self, tag: str) -> bool:
        """Whether a tag's folder is in this one, or may be elsewhere."""
        folders = (self.labels_folder, self.labels_folder / tag)
        return all(self._is_inside(folder, whole=False) for folder in folders)

    def _is_inside(self, path: Path, *, whole: bool = True) -> bool:
        """Whether a path, and the ``whole`` of what a folder holds, is in this folder, or may lead out of it."""
        if self._links:
            return True
        links = [path] if path.is_symlink() else []
        if whole and path.is_dir():
            with contextlib.suppress(OSError):  # what cannot be listed cannot be read either
                links += [Path(entry.path) for entry in os.scandir(path) if entry.is_symlink()]
        for link in links:
            # Not Path.resolve, which raises where a link leads to itself.
            if not Path(os.path.realpath(link)).is_relative_to(os.path.realpath(self.folder)):
                self._warn(f"{path} is left out: {link.name} is a link that leads out of the studies folder.")
                return False
        return True

    def _can_be_id(self, image: str) -> bool:
        if not is_plain_id(image) and not image.startswith("."):
            self._warn(f"The file {image!r} in {self.folder} has a name that cannot be used and is left out.")
        return is_plain_id(image)

    def _warn(self, sentence: str) -> None:
        if sentence not in self._warned:
            self._warned.add(sentence)
            logger.warning("%s", sentence)


def _fingerprint(entry: os.DirEntry[str]) -> str | None:
    """None for a link that leads nowhere and for what has just been deleted."""
    try:
        return fingerprint_of(entry.stat())
    except OSError:
        return None


def _holds_dicom(folder: Path) -> bool:
    try:
        files = (Path(entry.path) for entry in os.scandir(folder) if not entry.name.startswith(".") and entry.is_file())
        return any(is_dicom(file) for file, _ in zip(files, range(_FILES_ASKED), strict=False))
    except OSError:
        return False


def _merge(connection: sqlite3.Connection, table: str, info: dict[str, Any], where: str, key: tuple[str, ...]) -> bool:
    row = connection.execute(f"SELECT info FROM {table} WHERE {where}", key).fetchone()
    if row is None:
        return False
    merged = json.dumps({**json.loads(row["info"]), **info}, default=str, allow_nan=False)
    connection.execute(f"UPDATE {table} SET info = ? WHERE {where}", (merged, *key))
    return True
