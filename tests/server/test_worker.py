"""Work in the background: in order, none of it lost, none of it piled up."""

import functools
import threading

from svgd_label.server.worker import Worker


def test_work_is_done_in_order_by_one_thread_also_after_a_failure() -> None:
    threads: list[int] = []
    order: list[int] = []
    over = threading.Event()

    def note(number: int) -> None:
        threads.append(threading.get_ident())
        order.append(number)
        if number == 1:
            raise ValueError("fails")

    worker = Worker("test")
    for number in range(5):
        worker.do(functools.partial(note, number))
    worker.do(over.set)
    assert over.wait(10)
    assert order == [0, 1, 2, 3, 4]
    assert len(set(threads)) == 1


def test_what_waits_is_not_put_in_twice_but_what_runs_is_done_again() -> None:
    begun, go_on, over = threading.Event(), threading.Event(), threading.Event()
    times: list[int] = []

    def work() -> None:
        times.append(1)
        begun.set()
        go_on.wait(10)

    worker = Worker("test")
    worker.do(work)
    assert begun.wait(10)
    before = threading.active_count()
    for _ in range(100):
        worker.do(work)
    assert threading.active_count() == before
    worker.do(over.set)
    go_on.set()
    assert over.wait(10)
    assert len(times) == 2
