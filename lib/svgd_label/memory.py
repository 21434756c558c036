"""How many images are computed at a time: as many as fit into memory together."""

import contextlib
import threading
from collections.abc import Iterator

import psutil

from svgd_label.images import ImageError


class MemoryRoom:
    """The machine's free memory, of which threads take parts before they allocate them."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._taken = 0

    @contextlib.contextmanager
    def of(self, image: str, size: int) -> Iterator[None]:
        """Waits until ``size`` bytes are free, or nobody else computes.

        Raises:
            ImageError: it does not fit alone; passing, as another time or a larger machine may do.
        """
        with self._condition:
            # What the others have allocated already counts twice: rather too careful.
            self._condition.wait_for(lambda: not self._taken or size <= _free() - self._taken)
            if size > _free():
                needed = f"{size / 2**20:.0f} MB of memory"
                raise ImageError(
                    f"{image}: to be scored it needs {needed}, which are not free at present", passing=True
                )
            self._taken += size
        try:
            yield
        finally:
            with self._condition:
                self._taken -= size
                self._condition.notify_all()


def _free() -> int:
    return int(psutil.virtual_memory().available)
