"""How OpenMP's threads wait, which decides whether two processes on one machine help or hinder each other."""

import os


def set_thread_policy() -> None:
    """Lets waiting threads sleep, here if torch is not imported yet, and in every process started from here.

    By default they spin. Two processes of two threads on two cores then ran 2 to 6 times slower than with this
    (a training step beside another), and a server always has a training or an inference beside it.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
