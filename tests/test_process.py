"""A process that computes keeps the memory it frees."""

import platform
import subprocess
import sys

import pytest

CODE = """
import resource, numpy
from svgd_label.process import keep_freed_memory
{first}
def step():
    pieces = [numpy.ones(1 << 20) for _ in range(12)]
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_process_that_keeps_its_memory_does_not_ask_the_system_for_it_at_every_step() -> None:
    def faults(first: str) -> int:
        code = CODE.format(first=first)
        return int(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout)

    if faults("") < 2000:
        pytest.skip("here the C library does not give memory back at every step, or the system gives it in large pages")
    assert faults("keep_freed_memory()") < 1000
