"""Mutual information: one pair against numpy, many with many against scikit-image, and what a large pool costs.

The pool's part runs as the server runs it: codes from the state store in blocks, values into it. Each size has a
process of its own, whose peak memory is its own: ``python -m benchmarks.mutual_information STATE IMAGES LABELLED``.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.metrics import normalized_mutual_information

from benchmarks.common import RESULTS, ROOT, Measurement, paired
from svgd_label.active_step import compare
from svgd_label.pool import Database, Pool
from svgd_label.similarity import codes, mutual_information, mutual_information_matrix
from svgd_label.tasks import Task, load_task

BINS = 64
LIMIT_GIB = 4.0
Volume = NDArray[np.float32]
_of_skimage: Callable[..., float] = normalized_mutual_information


def run(*, quick: bool) -> list[Measurement]:
    """Volumes of 64^3; pools of up to 10,000 images of 32^3 with up to 100 labelled ones, quickly 300 with 20."""
    return [_pair(quick), _matrix(quick), _large_pool(quick)]


def _volumes(number: int, side: int) -> list[Volume]:
    """Smooth volumes in [0, 1] with a background of one value and some noise, as images have them."""
    rng = np.random.default_rng(0)
    field = gaussian_filter(rng.random((side, side, side)), 2, mode="wrap")
    field = (field - field.min()) / np.ptp(field)
    volumes = []
    for _ in range(number):
        moved = np.roll(field, rng.integers(0, side, 3), axis=(0, 1, 2)) + rng.normal(0, 0.02, field.shape)
        moved[: side // 4] = 0
        volumes.append(moved.clip(0, 1).astype(np.float32))
    return volumes


def _pair(quick: bool) -> Measurement:
    a, b = (codes(volume) for volume in _volumes(2, 64))

    def with_bincount() -> float:
        joint = np.bincount(a.ravel().astype(np.int32) * BINS + b.ravel(), minlength=BINS * BINS) / a.size
        joint = joint.reshape(BINS, BINS)
        rows, columns = np.nonzero(joint)
        cells = joint[rows, columns]
        return float(np.sum(cells * np.log(cells / (joint.sum(axis=1)[rows] * joint.sum(axis=0)[columns]))))

    assert abs(mutual_information(a, b) - with_bincount()) < 1e-9
    ratio, ours, theirs = paired(lambda: mutual_information(a, b), with_bincount, pairs=100 if quick else 500)
    unit = "ms a pair, against numpy.bincount"
    return Measurement("mutual_information_pair", ratio, 0.5, 1e3 * ours, 1e3 * theirs, unit)


def _matrix(quick: bool) -> Measurement:
    volumes = _volumes(80, 64)
    images, labelled = volumes[:60], volumes[60:]
    number, few = len(images) * len(labelled), 5
    ratio, ours, theirs = paired(
        lambda: mutual_information_matrix(images, labelled),
        lambda: [_of_skimage(image, labelled[0], bins=BINS) for image in images[:few]],
        pairs=5 if quick else 20,
    )
    unit = "ms a pair, against scikit-image"
    return Measurement(
        "mutual_information_matrix",
        ratio * few / number,
        0.01,
        1e3 * ours / number,
        1e3 * theirs / few,
        unit,
        {"pairs": number},
    )


def _large_pool(quick: bool) -> Measurement:
    sizes = ([300], [20]) if quick else ([1000, 3000, 10_000], [10, 30, 100])
    found: dict[tuple[int, int], dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        _write_codes(Path(folder), sizes[0][-1] + 1)
        for images in sizes[0]:
            for labelled in sizes[1]:
                command = [sys.executable, "-m", __name__, folder, str(images), str(labelled)]
                answer = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
                found[images, labelled] = json.loads(answer)
    if not quick:
        _draw(found)
    details = {
        f"{images} images, {labelled} labelled: {what}": round(value, 3)
        for (images, labelled), figures in found.items()
        for what, value in figures.items()
    }
    peak = max(figures["peak GiB"] for figures in found.values())
    unit = f"GiB at most, {sizes[0][-1]} images with {sizes[1][-1]} labelled"
    return Measurement("mutual_information_pool", peak / LIMIT_GIB, 1.0, peak, LIMIT_GIB, unit, details)


def _open(folder: Path) -> tuple[Pool, Task]:
    task = load_task("hippocampus")
    return Pool(Database(folder, task=task.name), validation="none", max_frequency=task.max_frequency), task


def _write_codes(folder: Path, number: int) -> None:
    pool, _ = _open(folder)
    originals = [codes(volume) for volume in _volumes(50, 32)]
    rng = np.random.default_rng(1)
    names = [f"image_{index:05}" for index in range(number)]
    for start in range(0, number, 500):
        block = names[start : start + 500]
        with pool.database.transaction() as connection:
            insert = "INSERT INTO images (image, name, ext, fingerprint) VALUES (?, ?, '', '')"
            connection.executemany(insert, [(name, name) for name in block])
            shifts = rng.integers(0, 32**3, len(block))
            pool.write_codes(
                {name: np.roll(originals[index % 50], shifts[index]) for index, name in enumerate(block)},
            )
    pool.database.close()


def _measure(folder: Path, images: int, labelled: int) -> dict[str, float]:
    """Seconds for all pairs, then for one label more, one image more and nothing new; peak memory of this process."""
    pool, task = _open(folder)
    with pool.database.transaction() as connection:
        connection.execute("DELETE FROM mutual_information")
    mutual_information([0.0, 1.0], [0.0, 1.0])  # compiles
    names = sorted(pool.fingerprints())

    def seconds(u: int, t: int) -> float:
        started = time.perf_counter()
        compare(pool, task, names[:u], names[:t])
        pool.labelled_information(names[:u], names[:t])
        return time.perf_counter() - started

    return {
        "all pairs, s": seconds(images, labelled),
        "one label more, s": seconds(images, labelled + 1),
        "one image more, s": seconds(images + 1, labelled + 1),
        "nothing new, s": seconds(images + 1, labelled + 1),
        "peak GiB": _peak_gib(),
    }


def _peak_gib() -> float:
    """Of this process since it started its program; ``getrusage`` would count what its parent held before."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def _draw(found: dict[tuple[int, int], dict[str, float]]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.2), layout="constrained")
    for axis, what in zip(axes, ("all pairs, s", "one label more, s", "peak GiB"), strict=True):
        for labelled in sorted({key[1] for key in found}):
            points = [(images, figures[what]) for (images, t), figures in found.items() if t == labelled]
            axis.plot(*zip(*points, strict=True), marker="o", label=f"{labelled} labelled")
        axis.set(xscale="log", xlabel="images in the pool", title=what)
        axis.grid(alpha=0.3)
        if what.endswith("GiB"):
            axis.axhline(LIMIT_GIB, color="grey", linestyle="--", label="limit")
            axis.set_ylim(0, LIMIT_GIB * 1.1)
        else:
            axis.set_yscale("log")
    axes[2].legend(fontsize=8)
    RESULTS.mkdir(parents=True, exist_ok=True)
    figure.savefig(RESULTS / "mutual_information.png", dpi=110)


if __name__ == "__main__":
    print(json.dumps(_measure(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
