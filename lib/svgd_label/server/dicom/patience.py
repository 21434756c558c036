"""What failed is tried again after pauses that double."""

import time
from collections.abc import Collection, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Patience(Generic[K]):
    """When each thing that failed is due again.

    Args:
        first: seconds until the second try.
        longest: seconds that no pause exceeds.
    """

    def __init__(self, first: float, longest: float) -> None:
        self._first, self._longest = first, longest
        self._failed: dict[K, tuple[float, float]] = {}  # not before, and the pause until then

    def is_due(self, key: K) -> bool:
        """Also for what has not failed."""
        return self._failed.get(key, (0.0, 0.0))[0] <= time.monotonic()

    def put_off(self, key: K) -> bool:
        """It failed; whether for the first time."""
        known = self._failed.get(key)
        pause = min(self._first if known is None else 2 * known[1], self._longest)
        self._failed[key] = (time.monotonic() + pause, pause)
        return known is None

    def done(self, key: K) -> None:
        """It did not fail."""
        self._failed.pop(key, None)

    def keep(self, keys: Collection[K]) -> None:
        """Forgets all others."""
        self._failed = {key: failed for key, failed in self._failed.items() if key in keys}

    def seconds(self) -> float:
        """Until the first of them is due; infinite where nothing has failed."""
        return min((when for when, _ in self._failed.values()), default=float("inf")) - time.monotonic()
