"""Segmenting one image: time against bare forward passes on the same windows, and peak memory of a large CT.

The bare passes run with the convolutions that ours runs with; how much slower they are as torch chooses convolutions by
itself is among the details. Memory is that of a fresh process: imports, committee, reading, segmenting, the way back to
the image's own grid.
"""

import functools
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import torch

from benchmarks._passes import bare_passes, windows_of
from benchmarks.common import Measurement, paired, peaks_gib
from svgd_label.checkpoint import new_committee
from svgd_label.device import default_device
from svgd_label.inference import predict, segment
from svgd_label.tasks import Task

TARGET = 1.1
GROWTH_TARGET = 1.1
LIMIT_GIB = 4.0
SHAPE, SPACING = (512, 512, 300), (0.8, 0.8, 1.5)


def run(*, quick: bool) -> list[Measurement]:
    """Patches of 48^3 at 4 mm, five particles; the CT has 512 x 512 x 300 voxels, quickly the half each way."""
    task, device = ct_task(5), default_device()
    committee = new_committee(task, seed=0).to(device).eval()
    image = torch.rand(1, *((48, 48, 60) if quick else (102, 102, 112)), generator=torch.Generator().manual_seed(0))
    windows = windows_of(task, image)
    bare = [bare_passes(committee, windows, as_ours=as_ours) for as_ours in (True, False)]
    ours = functools.partial(predict, task, committee, image.to(device))
    ratio, mine, theirs = paired(ours, bare[0], pairs=3 if quick else 15)
    plain = paired(ours, bare[1], pairs=1 if quick else 2)
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "ct.nii.gz"
        _write_ct(file, quick)
        sizes = (1, 5) if quick else (1, 5, 20)
        code = "from benchmarks.inference import segment_ct; segment_ct({!r}, {})"
        peaks = peaks_gib(code.format(str(file), size) for size in sizes)
    details = {"windows": len(windows), "ratio_with_convolutions_as_torch_chooses_them": round(plain[0], 3)}
    memory = {f"gib_with_{size}": round(peak, 3) for size, peak in zip(sizes, peaks, strict=True)}
    most = f"GiB, {sizes[-1]} particles against 1"
    return [
        Measurement("inference", ratio, TARGET, mine, theirs, f"s for {len(windows)} windows", details),
        Measurement("inference_memory", peaks[-1] / peaks[0], GROWTH_TARGET, peaks[-1], peaks[0], most, memory),
        Measurement("inference_ct", peaks[1] / LIMIT_GIB, 1.0, peaks[1], LIMIT_GIB, "GiB, peak against the limit"),
    ]


def ct_task(particles: int) -> Task:
    """An abdominal CT in patches."""
    network = {"name": "UNet", "arguments": {"channels": [16, 32, 64, 128], "strides": [2, 2, 2], "num_res_units": 2}}
    return Task.model_validate(
        {
            "name": "ct",
            "labels": ["organ", "tumour"],
            "spacing": [4, 4, 4],
            "window": [48, 48, 48],
            "patches": True,
            "intensity": {"clip": [-87, 199]},
            "network": network,
            "particles": particles,
        }
    )


def segment_ct(file: str, particles: int) -> None:
    """What a fresh process does."""
    task = ct_task(particles)
    segment(task, new_committee(task, seed=0).to(default_device()), file)


def _write_ct(file: Path, quick: bool) -> None:
    """Body, air and a ball, with noise."""
    shape = tuple(n // 2 for n in SHAPE) if quick else SHAPE
    x, y, z = np.ogrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j, -1 : 1 : shape[2] * 1j]
    body = np.where(x**2 + (1.3 * y) ** 2 < 0.8, 40, -1000)
    rng = np.random.default_rng(0)
    voxels = np.empty(shape, np.int16)
    for k in range(shape[2]):
        ball = (x[..., 0] - 0.3) ** 2 + y[..., 0] ** 2 + z[0, 0, k] ** 2 < 0.04
        voxels[..., k] = np.where(ball, 120, body[..., 0]) + rng.integers(-10, 10, shape[:2])
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])), file)
