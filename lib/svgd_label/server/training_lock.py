"""One training of a study at a time, also one that has outlived the server which began it."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUSY = "another training of this study runs, begun by another server or by one that has ended"


class BusyError(Exception):
    """Another process trains."""


@contextmanager
def training_alone(state: Path) -> Iterator[None]:
    """Holds the lock of a state folder; the system releases it with the process, however that ends.

    Raises:
        BusyError: it is held.
    """
    with (state / "training.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(BUSY) from error
        yield


def is_trained_elsewhere(state: Path) -> bool:
    """Whether the lock is held."""
    try:
        with training_alone(state):
            return False
    except BusyError:
        return True
