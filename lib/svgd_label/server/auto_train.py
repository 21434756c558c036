"""Training as labels come in: started by the server itself after so many new ones, once nothing else is running."""

import logging
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from monailabel.utils.async_tasks.utils import tasks

from svgd_label.pool import LabelStore, Pool
from svgd_label.server.training_lock import is_trained_elsewhere
from svgd_label.server.worker import Worker

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_STARTING_SECONDS = 60.0
_CLOCK_SECONDS = 60.0


class AutoTrain:
    """Starts a training when ``every`` images have a final label that is newer than the last training.

    A first label and a correction count alike, an image once however often it was corrected. What is new stands in the
    state store, so a restart forgets nothing. A training that was stopped or failed counts as well until the server is
    started again: nobody wants to stop it twice.

    Args:
        every: so many labels; 0 for never.
        pool, labels: where it stands what was trained on and what was saved.
        start: starts a training beside the server and returns.
    """

    def __init__(self, every: int, pool: Pool, labels: LabelStore, start: Callable[[], Any]) -> None:
        self.every = every
        self._pool, self._labels, self._start_training = pool, labels, start
        self._worker: Worker | None = None

    def start(self) -> None:
        """From here on ``consider`` counts: one thread decides, so that two saves at once start one training."""
        if self.every:
            self._worker = Worker("auto-train")

    def consider(self) -> None:
        """Labels may have come; returns at once."""
        if self._worker is not None:
            self._worker.do(self._train_if_due)

    def new_labels(self) -> int:
        """Images with a label that the last training has not seen."""
        newest = self._pool.models.newest()
        # The shipped committee, and one of which this is not known, saw none of them.
        began = 0.0 if newest is None else float(self._pool.models.metrics(newest).get("started", 0.0))
        if last := tasks("train"):  # of this server
            began = max(began, _asked_for(last[-1]) + 1)
        # Of a clock that was put back: a training from the future would hide all labels, and a label from there would
        # be new after every training.
        latest = time.time() + _CLOCK_SECONDS
        return self._labels.saved_between(began if began <= latest else 0.0, latest)

    def _train_if_due(self) -> None:
        while (found := self.new_labels()) >= self.every and self._pool.training_list():
            state = self._pool.database.folder
            if not (is_running("train") or is_running("scoring") or is_trained_elsewhere(state)):
                logger.info("%d images have new labels: a training starts", found)
                self._start_training()
                return
            time.sleep(_LOOK_SECONDS)


def is_running(method: str) -> bool:
    """Whether a process for ``train`` or ``scoring`` runs beside the server, or waits to."""
    return _has_started(method) or is_waiting(method)


def is_waiting(method: str) -> bool:
    """Whether one has been asked for that is still to start.

    One that could not be started, as without memory for a process, would wait for ever in MONAI Label's list.
    """
    waiting = [_asked_for(task) for task in tasks(method) if task["status"] == "SUBMITTED"]
    return bool(waiting) and (_has_started(method) or time.time() - waiting[-1] < _STARTING_SECONDS)


def _has_started(method: str) -> bool:
    return any(task["status"] == "RUNNING" for task in tasks(method))


def _asked_for(task: dict[str, Any]) -> float:
    """In seconds since 1970; MONAI Label notes the second."""
    return datetime.strptime(task["start_ts"], "%Y-%m-%d %H:%M:%S").timestamp()
