"""MONAI Label's datastore for a folder, with its index in the state store and labels that no kill can cost."""

# MONAI Label's interface passes arguments that a folder has no use for.

import io
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.datastore.local import LocalDatastore, LocalDatastoreModel

from svgd_label.errors import UserError
from svgd_label.labels import convert_label, write_label
from svgd_label.pool import FINAL, ORIGINAL, LabelStore, Pool, Studies
from svgd_label.pool.files import (
    EXTENSIONS,
    PREVIOUS,
    arriving,
    copy_durably,
    fingerprint,
    make_folder,
    place,
    remove,
    split_extension,
)
from svgd_label.server.answers import dictionary, plain_image, plain_tag, storing, unknown_image
from svgd_label.server.archive import write_archive
from svgd_label.server.watcher import Watcher
from svgd_label.tasks import Task

logger = logging.getLogger(__name__)


class SafeDatastore(LocalDatastore):  # type: ignore[misc]  # monailabel is not typed
    """``LocalDatastore`` as MONAI Label's endpoints know it; each read asks SQLite, each write is one transaction.

    What a client can mend comes back as ``fastapi.HTTPException`` with a sentence: 400 a label that does not fit,
    404 an unknown image or a tag that leads elsewhere, 409 an image that must not be replaced, 507 no room to write.

    Args:
        studies: the folder with the images.
        state: the state folder; refused uploads and archives lie there.
        pool: the pool, over the state folder's database.
        task: gives the values of the structures.
        auto_reload: follow what happens in the folder.
        beside: this is a process beside the server, which alone reads the folder: it is told of each change once.
        on_change: called after something has happened there, other than a save; must not take long.

    Raises:
        UserError: the folder of the labels is a link that leads out.
    """

    def __init__(
        self,
        studies: str | Path,
        *,
        state: Path,
        pool: Pool,
        task: Task,
        auto_reload: bool,
        beside: bool = False,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        # LocalDatastore's own constructor would write its JSON file.
        self.studies = Studies(Path(studies).resolve(), pool)
        self.labels = LabelStore(self.studies)
        self.pool = pool
        self._state = state
        self._task = task
        self._auto_reload = auto_reload
        self._on_change = on_change
        self._database = pool.database
        self.changing = threading.RLock()
        """Held while an image comes or goes, or a label is stored that fits one; before any transaction."""
        self._datastore_path = str(self.studies.folder)
        self._extensions = [f"*{extension}" for extension in EXTENSIONS]
        # Only its paths are of use, to DICOMWebDatastore; it never holds an object.
        self._datastore = LocalDatastoreModel(
            name="new-dataset", description="New Dataset", images_dir=".", base_path=self._datastore_path
        )
        try:
            folders = [self.studies.label_folder(tag) for tag in (FINAL, ORIGINAL)]
        except UserError as error:
            raise UserError(
                f"{error}, {self.studies.folder}, and no such link is followed: mount it there, or move its files there"
            ) from error
        try:
            for folder in folders:
                make_folder(folder)
        except OSError as error:
            logger.warning("Labels cannot be saved in %s: %s.", self.studies.folder, error)
        # Watching begins before reading, so that nothing falls between the two.
        self._watcher = Watcher(self.studies, on_change) if auto_reload and not beside else None
        if not beside:
            self._read_folder()

    def close(self) -> None:
        """Ends the watching."""
        if self._watcher is not None:
            self._watcher.stop()

    # Names

    def name(self) -> str:
        """Name of the data set."""
        return self._database.get("name") or str(self._datastore.name)

    def set_name(self, name: str) -> None:
        """Names the data set."""
        self._database.set("name", name)

    def description(self) -> str:
        """What the data set is."""
        return self._database.get("description") or str(self._datastore.description)

    def set_description(self, description: str) -> None:
        """Says what the data set is."""
        self._database.set("description", description)

    # Images

    def list_images(self) -> list[str]:
        """Ids of all images, in order."""
        return self._ids("SELECT image FROM images WHERE present = 1 ORDER BY image")

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Ids of the images with a final label."""
        return self._ids(f"SELECT i.image FROM images i {_WITH_FINAL} WHERE i.present = 1 ORDER BY i.image")

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Ids of the images without a final label."""
        return self._ids(
            f"SELECT i.image FROM images i LEFT {_WITH_FINAL} WHERE i.present = 1 AND l.image IS NULL ORDER BY i.image"
        )

    def get_image(self, image_id: str, params: Any = None) -> io.BytesIO | None:
        """An image file's bytes; None for an unknown one."""
        return _bytes(self.get_image_uri(image_id))

    def get_image_uri(self, image_id: str) -> str:
        """Path of an image; empty for an unknown one."""
        path = self.studies.image_path(plain_image(image_id))
        return "" if path is None else str(path)

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What is stored of an image, what the pool knows of it, and its path; empty for an unknown one."""
        path = self.studies.image_path(plain_image(image_id))
        row = self._database.connection.execute("SELECT info FROM images WHERE image = ?", (image_id,)).fetchone()
        if path is None:
            return {}
        return {**json.loads(row["info"]), **self.pool.overview.image_state(image_id), "path": str(path)}

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Merges into what is stored of an image."""
        if not isinstance(info.get("strategy", {}) if isinstance(info, dict) else {}, dict):
            raise HTTPException(400, "strategy, where MONAI Label notes who was offered an image, must be an object.")
        if not self.studies.update_info(plain_image(image_id), dictionary(info)):
            raise unknown_image(image_id)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Puts an uploaded image into the folder; returns its id. An image that others may look at is not replaced."""
        source = Path(image_filename)
        stem, extension = split_extension(source.name)
        image = plain_image(image_id or stem)
        if not extension:
            raise HTTPException(400, f"{source.name} is no image: send {', '.join(EXTENSIONS)}.")
        target = self.studies.folder / f"{image}{extension}"
        # Copied without the lock that all processes' saves wait for, and only renamed with it.
        with storing(), arriving(source, target.parent) as copy, self.changing, self._database.transaction():
            self.studies.check([image], [])  # a file that has just been dropped there is an image too
            present = self.studies.image_path(image)
            if present is None:
                place(copy, target)
                self.studies.check([image], [])
            elif present != source and not _same(present, source):
                raise HTTPException(409, f"Another image is called {image} already: choose another id.")
            self.studies.update_info(image, dictionary(image_info or {}))
        self._on_change()
        return image

    def remove_image(self, image_id: str) -> None:
        """Deletes an image and its labels; versions of the labels stay in the state folder."""
        path = self.studies.image_path(plain_image(image_id))
        if path is None:
            raise unknown_image(image_id)
        aside = path.with_name(f"{PREVIOUS}{uuid.uuid4().hex}")
        # Not in one transaction: labels would be gone before it is known whether it can be committed.
        with storing(), self.changing:
            try:
                path.rename(aside)  # what a disk may refuse comes first, while it costs no label
            except FileNotFoundError:
                raise unknown_image(image_id) from None
            try:
                for tag in self.get_labels_by_image_id(image_id):
                    self.labels.remove(image_id, tag)
                self.studies.check([image_id], [])
            except BaseException:
                aside.rename(path)
                raise
            self._on_change()
            try:
                remove(aside)
            except OSError as error:
                sentence = (
                    f"{image_id} is out of the study, but its file could not be deleted ({error}): delete it there."
                )
                raise HTTPException(507, sentence) from error

    # Labels

    def get_label(self, label_id: str, label_tag: str, params: Any = None) -> io.BytesIO | None:
        """A label file's bytes; None for an unknown one."""
        return _bytes(self.get_label_uri(label_id, label_tag))

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Path of a label; empty for an unknown one."""
        path = self.studies.label_path(plain_image(label_id), plain_tag(label_tag))
        return "" if path is None else str(path)

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        """Tag -> label id, which is the image's."""
        rows = self._database.connection.execute("SELECT tag FROM labels WHERE image = ?", (plain_image(image_id),))
        return {row["tag"]: image_id for row in rows}

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """What is stored of a label; empty for an unknown one."""
        row = self._database.connection.execute(
            "SELECT info FROM labels WHERE image = ? AND tag = ?", (plain_image(label_id), plain_tag(label_tag))
        ).fetchone()
        info: dict[str, Any] = {} if row is None else json.loads(row["info"])
        return info

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Merges into what is stored of a label."""
        if not self.studies.update_label_info(plain_image(label_id), plain_tag(label_tag), dictionary(info)):
            raise HTTPException(404, f"There is no label {label_id} with the tag {label_tag}.")

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Converts an upload to the task's values on the image's grid and stores it; durable at return.

        ``label_info`` are the client's parameters; its entry ``label_info`` names the segments. What was left out
        stands in the label's info under ``ignored``.
        """
        image, tag = plain_image(image_id), plain_tag(label_tag)
        path = self.studies.image_path(image)
        upload = Path(label_filename)
        if path is None:
            raise self._unknown(image, upload)
        info = dictionary(label_info or {})
        content = _fingerprint(path)
        try:
            self.studies.label_folder(tag)
        except UserError as error:
            sentence = f"{error}, so nothing is saved there."
            raise HTTPException(404, f"{sentence} {self._keep_refused(image, upload)}".strip()) from error
        try:
            converted = convert_label(
                upload, info.get("label_info"), image=path, labels=self._task.labels, aliases=self._task.aliases
            )
        except UserError as error:
            sentence = str(error) if str(error).endswith("?") else f"{error}."
            raise HTTPException(400, f"{sentence} {self._keep_refused(image, upload)}".strip()) from error
        except Exception as error:
            logger.exception("The label of %s could not be converted.", image)
            sentence = f"The label of {image} could not be converted ({type(error).__name__}): see the server's log."
            raise HTTPException(500, f"{sentence} {self._keep_refused(image, upload)}".strip()) from error
        client = info.get("client_id") or info.get("user")
        version = info.get("model_version")
        with storing():
            file = self.labels.incoming(tag)
            try:
                write_label(converted, file)
                with self.changing:
                    if _fingerprint(path) != content:
                        sentence = f"The image {image} was replaced while its label was saved: load it again."
                        raise HTTPException(409, f"{sentence} {self._keep_refused(image, upload)}".strip())
                    self.labels.save(
                        image,
                        tag,
                        file,
                        info={**info, "ignored": converted.ignored, "missing": converted.missing},
                        client=None if client is None else str(client),
                        model_version=version if isinstance(version, int) and 0 <= version < 2**31 else None,
                    )
            except KeyError as error:
                raise self._unknown(image, upload) from error
            finally:
                file.unlink(missing_ok=True)  # a label that was saved does not lie there any more
        logger.info("Saved the label %s/%s.", tag, image)
        return image

    def saved_label(self, image: str, tag: str) -> dict[str, Any]:
        """What a client is told of its label: segments ``ignored``, structures ``missing``, and its ``version``."""
        read = self._database.connection.execute
        row = read("SELECT info, number FROM labels WHERE image = ? AND tag = ?", (image, tag)).fetchone()
        info = {} if row is None else json.loads(row["info"])
        return {"ignored": info.get("ignored"), "missing": info.get("missing"), "version": row and row["number"]}

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Deletes a label; its versions stay in the state folder."""
        with storing():
            if not self.labels.remove(plain_image(label_id), plain_tag(label_tag)):
                raise HTTPException(404, f"There is no label {label_id} with the tag {label_tag}.")
        self._on_change()

    # The whole

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """``{"image": path, "label": path}`` of all final labels, from the folder's own path on or below it."""
        rows = self._database.connection.execute(
            f"SELECT i.image, i.name, l.ext FROM images i {_WITH_FINAL} WHERE i.present = 1 ORDER BY i.image"
        )
        base = self.studies.folder if full_path else Path()
        return [
            {
                "image": str(base / row["name"]),
                "label": str(base / "labels" / FINAL / f"{row['image']}{row['ext']}"),
            }
            for row in rows
        ]

    def status(self) -> dict[str, Any]:
        """Counts of images, final labels, and labels of each tag."""
        read = self._database.connection.execute
        rows = read("SELECT tag, COUNT(*) FROM labels JOIN images USING (image) WHERE present = 1 GROUP BY tag")
        tags = {row[0]: row[1] for row in rows}
        total = read("SELECT COUNT(*) FROM images WHERE present = 1").fetchone()[0]
        return {"total": total, "completed": tags.get(FINAL, 0), "label_tags": tags}

    def json(self) -> dict[str, Any]:
        """All that is known, in the shape of MONAI Label's ``datastore_v2.json``."""
        states = self.pool.overview.image_states()
        objects: dict[str, Any] = {}
        for row in self._database.connection.execute("SELECT * FROM images WHERE present = 1 ORDER BY image"):
            info = {**json.loads(row["info"]), **states.get(row["image"], {})}
            objects[row["image"]] = {"image": {"ext": row["ext"], "info": info}, "labels": {}}
        for row in self._database.connection.execute("SELECT * FROM labels"):
            if row["image"] in objects:
                label = {"ext": row["ext"], "info": json.loads(row["info"])}
                objects[row["image"]]["labels"][row["tag"]] = label
        return {
            "name": self.name(),
            "description": self.description(),
            "images_dir": ".",
            "labels_dir": "labels",
            "objects": objects,
        }

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """Path of a ZIP file with labelled images, their labels, and ``metadata.json``."""
        cases = self.datalist()[: limit_cases or None]
        if not cases:
            raise HTTPException(404, "There is no labelled image yet, so the archive would be empty.")
        with storing():
            return str(write_archive(self._state / "archives", cases, self.json(), within=self.studies.folder))

    def refresh(self) -> None:
        """Takes over what has happened to the files."""
        self.studies.reconcile()

    def _reconcile_datastore(self) -> None:
        self.studies.reconcile()

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        """Nothing: there is no such file."""

    def _update_datastore_file(self, lock: bool = True) -> None:
        """Nothing: there is no such file."""

    def _read_folder(self) -> None:
        is_new = self._database.get("read") is None
        had_labels = is_new and (self._state / "versions").is_dir()
        self.studies.remove_leftovers()
        if is_new:
            self.labels.adopt_versions()
        changed = self.studies.reconcile()
        self.studies.import_index(self.studies.folder / "datastore_v2.json")
        if had_labels or self._database.moved_aside is not None:
            status = self.status()
            logger.warning(
                "The index was lost and has been made again from the files: %d images, %d final labels.",
                status["total"],
                status["completed"],
            )
        elif changed:
            logger.info("%d images and labels in %s are new or changed.", changed, self.studies.folder)
        self._database.set("read", "yes")

    def _unknown(self, image: str, upload: Path) -> HTTPException:
        """The answer to a label of an image that is not there; one that was there may have been drawn on meanwhile."""
        if self._database.connection.execute("SELECT 1 FROM images WHERE image = ?", (image,)).fetchone() is None:
            return unknown_image(image)
        sentence = f"The image {image} is no longer in the study, so it cannot be labelled."
        return HTTPException(404, f"{sentence} {self._keep_refused(image, upload)}".strip())

    def _keep_refused(self, image: str, upload: Path) -> str:
        """Keeps an upload; a sentence that says where, empty where that failed."""
        kept = self._state / "refused" / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6:06}-{image}"
        kept = kept.with_name(kept.name + "".join(upload.suffixes[-2:]))
        try:
            make_folder(kept.parent)
            copy_durably(upload, kept)
        except OSError as error:
            logger.warning("A refused label of %s could not be kept: %s.", image, error)
            return ""
        return f"The upload is kept on the server as refused/{kept.name} in the state folder."

    def _ids(self, select: str) -> list[str]:
        return [row["image"] for row in self._database.connection.execute(select)]


_WITH_FINAL = f"JOIN labels l ON l.image = i.image AND l.tag = '{FINAL}'"


def _bytes(path: str) -> io.BytesIO | None:
    return io.BytesIO(Path(path).read_bytes()) if path else None


def _fingerprint(path: Path) -> str | None:
    """Of an image that may have gone."""
    return fingerprint(path) if path.exists() else None


def _same(a: Path, b: Path) -> bool:
    """Whether two paths are files of equal content."""
    if not a.is_file() or a.stat().st_size != b.stat().st_size:
        return False
    return a.read_bytes() == b.read_bytes()
