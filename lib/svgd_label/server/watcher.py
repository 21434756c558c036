"""Notices files that come, go or change in a studies folder by other means than the server's own."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver
from watchdog.observers.polling import PollingObserver

from svgd_label.pool.database import on_network
from svgd_label.pool.files import split_extension
from svgd_label.pool.studies import LabelKey, Studies

logger = logging.getLogger(__name__)

QUIET_SECONDS = 0.5
LONGEST_SECONDS = 5.0
_SETTLING_SECONDS = 30.0
_POLL_SECONDS = 5.0
_LONGEST_PAUSE = 300.0
_READING = ("opened", "closed_no_write")


class Watcher(FileSystemEventHandler):
    """Watches the top of the folder, ``labels`` and each tag below it, never the inside of an image.

    What an event names is looked at when the folder has been quiet for half a second, or after 5 s without quiet.
    A folder that is still being filled (DICOM files that are copied) is looked at again until it rests.
    ``on_change`` is called after images or labels have changed.
    """

    def __init__(self, studies: Studies, on_change: Callable[[], None]) -> None:
        self._studies = studies
        self._on_change = on_change
        self._condition = threading.Condition()
        self._images: set[str] = set()
        self._labels: set[LabelKey] = set()
        self._everything = False
        self._first = self._last = 0.0
        self._settling: dict[str, float] = {}
        self._stopped = False
        self._watched: set[Path] = set()
        self._observer = self._start_observer()
        self._thread = threading.Thread(target=self._run, name="studies-watcher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends both threads."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()
        self._thread.join()
        self._observer.stop()
        self._observer.join()

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Notes what an event is about."""
        if event.event_type in _READING:
            return
        with self._condition:
            noted = [self._note(Path(str(path))) for path in (event.src_path, event.dest_path) if path]
            if any(noted):
                self._last = time.monotonic()
                self._first = self._first or self._last
                self._condition.notify_all()

    def _note(self, path: Path) -> bool:
        """Files the path under image, label or everything; False where it is none of ours."""
        if path.name.startswith("."):
            return False
        name = split_extension(path.name)[0]
        if path == self._studies.labels_folder or path.parent == self._studies.labels_folder:
            # The folder of a tag is reported with each change in it; only a tag that comes or goes is news.
            news = path.is_dir() != (path in self._watched)
            self._everything |= news
            return news
        if path.parent == self._studies.folder:
            self._images.add(name)
        elif path.parent.parent == self._studies.labels_folder:
            self._labels.add((path.parent.name, name))
        else:
            return False
        return True

    def _run(self) -> None:
        pause = _POLL_SECONDS
        while not self._stopped:
            with self._condition:
                self._condition.wait(self._pause())
                due = {image for image, when in self._settling.items() if when <= time.monotonic()}
                if self._stopped or (self._pause() and not due):
                    continue
                images, labels, everything = self._images | due, self._labels, self._everything
                self._images, self._labels, self._everything, self._first = set(), set(), False, 0.0
                for image in due:
                    del self._settling[image]
            try:
                changed = 0
                if everything:
                    self._watch_folders(self._observer)
                    changed += self._studies.reconcile()
                # A label may have come before its image.
                labels |= {(tag, image) for image in images for tag in self._studies.tags()}
                changed += self._studies.check(images, labels)
                self._settle(images)
                if changed:
                    self._on_change()
            except Exception:  # as where the disk is full: the watching goes on, and all is looked at again
                logger.exception("A change in %s could not be followed; it is tried again.", self._studies.folder)
                with self._condition:
                    self._everything = True
                    self._images |= images
                    self._labels |= labels
                    self._first = self._last = time.monotonic() + pause
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                pause = _POLL_SECONDS

    def _pause(self) -> float | None:
        """Seconds until there is something to do, 0 for now; None where nothing is known to come."""
        now = time.monotonic()
        waits = [when - now for when in self._settling.values()]
        if self._first:
            waits.append(min(self._last + QUIET_SECONDS, self._first + LONGEST_SECONDS) - now)
        return max(0.0, min(waits)) if waits else None

    def _settle(self, images: set[str]) -> None:
        for image in images:
            folder = self._studies.folder / image
            with contextlib.suppress(OSError):
                if folder.is_dir() and time.time() - folder.stat().st_mtime < _SETTLING_SECONDS:
                    self._settling[image] = time.monotonic() + _POLL_SECONDS

    def _start_observer(self) -> BaseObserver:
        # What other machines do on a share is not announced, so there it has to be looked for.
        observer = PollingObserver(timeout=_POLL_SECONDS) if on_network(self._studies.folder) else Observer()
        try:
            self._watch_folders(observer)
            observer.start()
        except OSError as error:
            logger.warning(
                "The system refuses to watch %s (%s): it is looked at every %g s instead.",
                self._studies.folder,
                error,
                _POLL_SECONDS,
            )
            self._watched.clear()
            observer = PollingObserver(timeout=_POLL_SECONDS)
            self._watch_folders(observer)
            observer.start()
        return observer

    def _watch_folders(self, observer: BaseObserver) -> None:
        tags = [self._studies.label_folder(tag) for tag in self._studies.tags()]
        folders = {folder for folder in (self._studies.folder, self._studies.labels_folder, *tags) if folder.is_dir()}
        for folder in folders - self._watched:
            observer.schedule(self, str(folder), recursive=False)
        self._watched = folders
