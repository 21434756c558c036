"""What a process that computes asks of OpenMP's threads and of the C library's memory."""

import contextlib
import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LARGEST_OF_HEAP = 32 << 20  # of one piece; glibc refuses more


def set_thread_policy() -> None:
    """Lets waiting threads sleep, here if torch is not imported yet, and in every process started from here.

    By default they spin. Two processes of two threads on two cores then ran 2 to 6 times slower than with this
    (a training step beside another), and a server always has a training or an inference beside it.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def keep_freed_memory() -> None:
    """Lets this process keep memory that it frees, for its next training step; for one that trains and then ends.

    By default glibc gives it back to the system at every step and asks for it again: thousands of page faults, up to a
    tenth of a step's time. Where there is another C library, nothing is done.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        library.mallopt(M_MMAP_THRESHOLD, LARGEST_OF_HEAP)
