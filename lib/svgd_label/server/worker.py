"""A thread of its own for work that a request does not wait for."""

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Worker:
    """Does what it is given in order, one after the other, until the server ends.

    A thread for each piece of work would be left waiting behind the one before: as many as there were labels.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._wanted = threading.Condition()
        self._waiting: list[Callable[[], object]] = []
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def do(self, work: Callable[[], object]) -> None:
        """Returns at once. What equals work that waits is not done twice; what runs has begun too early to count."""
        with self._wanted:
            if work not in self._waiting:
                self._waiting.append(work)
                self._wanted.notify()

    def _run(self) -> None:
        while True:
            with self._wanted:
                self._wanted.wait_for(lambda: self._waiting)
                work = self._waiting.pop(0)
            try:
                work()
            except Exception:  # a thread that dies in silence leaves a server that looks healthy
                logger.exception("background work failed: %s", self._name)
