"""What every benchmark shares: what it returns, timing two sides in one run, peak memory, where the figures go."""

import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from svgd_label import hardware

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "benchmarks"


@dataclass(frozen=True)
class Measurement:
    """One comparison. ``ratio`` is ours / theirs, the median over pairs that ran one right after the other."""

    name: str
    ratio: float
    target: float
    ours: float
    theirs: float
    unit: str
    details: dict[str, float] = field(default_factory=dict)
    """Further figures of the same run, each under a name that says its unit."""

    @property
    def met(self) -> bool:
        """Whether the ratio is at most the target."""
        return self.ratio <= self.target


def paired(ours: Callable[[], object], theirs: Callable[[], object], *, pairs: int) -> tuple[float, float, float]:
    """Times both sides in turn after one warm-up of each.

    This way a machine that is shared, and now faster, now slower, disturbs both sides alike.

    Returns:
        The median of the ratios pair by pair, and the medians of ours and theirs in seconds.
    """
    times: list[tuple[float, float]] = []
    for number in range(pairs + 1):
        pair = []
        for side in (ours, theirs):
            started = time.perf_counter()
            side()
            pair.append(time.perf_counter() - started)
        if number:
            times.append((pair[0], pair[1]))
    return (
        statistics.median(a / b for a, b in times),
        statistics.median(a for a, _ in times),
        statistics.median(b for _, b in times),
    )


def peaks_gib(codes: Iterable[str]) -> list[float]:
    """Peak resident memory in GiB of a fresh Python process on Linux for each code, imports included; two at a time."""
    ending = "; print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    with ThreadPoolExecutor(2) as processes:
        return [int(kib) / 2**20 for kib in processes.map(lambda code: _printed(code + ending), codes)]


def peaks_gib_on_gpu(codes: Iterable[str]) -> list[float]:
    """GPU memory in GiB that a fresh Python process has taken by the end of each code, CUDA's own included.

    One after the other, on a GPU that nobody else uses meanwhile: what the driver says is of all processes, so what
    this one holds is taken off.
    """
    ending = "; import torch; free, total = torch.cuda.mem_get_info(); print(total - free)"
    free, total = torch.cuda.mem_get_info()
    return [(int(_printed(code + ending)) - (total - free)) / 2**30 for code in codes]


def _printed(code: str) -> str:
    """The last word that a fresh Python process prints."""
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=1800
    )
    return ended.stdout.split()[-1]


def benchmarks() -> list[str]:
    """The names of all benchmarks: the files of this folder that have a ``run``."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(file.stem for file in files if not file.stem.startswith(("_", "common")))


def run(name: str, *, quick: bool) -> list[Measurement]:
    """Runs one benchmark; only a full run writes its measurements."""
    found = importlib.import_module(f"benchmarks.{name}").run(quick=quick)
    measurements = [found] if isinstance(found, Measurement) else list(found)
    if not quick:
        for measurement in measurements:
            write(measurement, command=f"python main.py bench {name}")
    return measurements


def write(measurement: Measurement, *, command: str) -> Path:
    """Writes ``results/benchmarks/NAME.json``."""
    content = {
        **{k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(measurement).items()},
        "met": measurement.met,
        "hardware": hardware.describe(),
        "command": command,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{measurement.name}.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path
