"""Images wait for each other where they do not fit into memory together, and never for ever."""

import threading
import time

import psutil
import pytest

from svgd_label.images import ImageError
from svgd_label.memory import MemoryRoom


@pytest.fixture(autouse=True)
def hundred_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    free = psutil.virtual_memory()._replace(available=100)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)


@pytest.mark.parametrize(("size", "at_once"), [(30, 3), (60, 1), (100, 1)])
def test_as_many_at_a_time_as_fit(size: int, at_once: int) -> None:
    room, lock, inside, most = MemoryRoom(), threading.Lock(), 0, 0

    def one() -> None:
        nonlocal inside, most
        with room.of("a", size):
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.1)
            with lock:
                inside -= 1

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == at_once


def test_what_does_not_fit_alone_is_refused_for_now() -> None:
    refusal = pytest.raises(ImageError, match="a: to be scored it needs 0 MB of memory, which are not free")
    with refusal as refused, MemoryRoom().of("a", 101):
        raise AssertionError
    assert refused.value.passing
