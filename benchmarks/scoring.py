"""Scoring a pool of images, against MONAI Label's EpistemicScoring end to end and against the bare forward passes.

All three run the same network on the same images on the same device, five forward passes an image. MONAI Label's method
takes one set of weights five times, and reads and transforms the image anew for each pass. The bare passes get their
windows ready and throw their output away; they run with the convolutions that ours runs with.
"""

import itertools
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    ScaleIntensityRangePercentilesd,
    Spacingd,
)
from monailabel.datastore.local import LocalDatastore
from monailabel.tasks.scoring.epistemic import EpistemicScoring

from benchmarks._passes import bare_passes, windows_of
from benchmarks.common import ROOT, Measurement, paired
from svgd_label import acquisition
from svgd_label.active_step import score_pool
from svgd_label.checkpoint import new_committee
from svgd_label.device import default_device
from svgd_label.pool import Database, Pool, Studies
from svgd_label.svgd import Committee
from svgd_label.tasks import Task, load_task
from svgd_label.tasks.transforms import prepare_image

TARGET = 1 / 3
BARE_TARGET = 1.3


def run(*, quick: bool) -> list[Measurement]:
    """The hippocampus task on copies of the sample images, nothing labelled yet."""
    count, pairs = (4, 1) if quick else (20, 15)
    task = load_task("hippocampus")
    committee = new_committee(task, seed=0).to(default_device()).eval()
    loudness = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            images = _images(Path(temporary) / "images", count)
            ours = _ours(Path(temporary) / "ours", task, committee, images)
            theirs = paired(ours, _theirs(Path(temporary) / "theirs", task, committee, images), pairs=pairs)
            bare = paired(ours, _bare(task, committee, images, as_ours=True), pairs=pairs)
            plain = paired(ours, _bare(task, committee, images, as_ours=False), pairs=max(1, pairs // 3))
    finally:
        logging.disable(loudness)
    unit = f"s for {count} images"
    details = {"images": count, "ratio_with_convolutions_as_torch_chooses_them": round(plain[0], 3)}
    return [
        Measurement("scoring", theirs[0], TARGET, theirs[1], theirs[2], unit, {"images": count}),
        Measurement("scoring_bare", bare[0], BARE_TARGET, bare[1], bare[2], unit, details),
    ]


def _images(folder: Path, count: int) -> dict[str, str]:
    folder.mkdir()
    originals = itertools.cycle(sorted((ROOT / "sample-data").glob("*.nii.gz")))
    for number, original in zip(range(count), originals, strict=False):
        shutil.copy(original, folder / f"image_{number:03}.nii.gz")
    return {file.name.removesuffix(".nii.gz"): str(file) for file in sorted(folder.iterdir())}


def _ours(folder: Path, task: Task, committee: Committee, images: dict[str, str]) -> Callable[[], None]:
    """Scores the pool for a model version that is newer each time."""
    shutil.copytree(Path(next(iter(images.values()))).parent, folder)
    pool = Pool(Database(folder / ".svgd", task=task.name), validation="none", max_frequency=task.max_frequency)
    Studies(folder.resolve(), pool).reconcile()
    versions = itertools.count(1)

    def score() -> None:
        result = score_pool(
            pool, task, committee, images, version=next(versions), strategy=acquisition.strategy("entropy_mi"), seed=0
        )
        assert result.scored == len(images)

    return score


def _theirs(folder: Path, task: Task, committee: Committee, images: dict[str, str]) -> Callable[[], None]:
    """MONAI Label's own scoring of its own datastore, with a model file that is newer each time."""
    shutil.copytree(Path(next(iter(images.values()))).parent, folder)
    datastore = LocalDatastore(str(folder), extensions=["*.nii.gz"], auto_reload=False)
    model = folder.parent / "model.pt"
    torch.save(committee.particles[0].state_dict(), model)
    assert task.spacing is not None and task.intensity.percentiles is not None
    low, high = task.intensity.percentiles
    transforms = Compose(
        [
            LoadImaged(keys="image"),
            EnsureChannelFirstd(keys="image"),
            Orientationd(keys="image", axcodes="RAS"),
            Spacingd(keys="image", pixdim=task.spacing),
            ScaleIntensityRangePercentilesd(keys="image", lower=low, upper=high, b_min=0, b_max=1, clip=True),
        ]
    )
    scoring = EpistemicScoring(
        str(model),
        network=task.build_network(),
        transforms=transforms,
        roi_size=task.window,
        num_samples=task.particles,
        load_strict=True,
    )
    times = itertools.count(1_000_000_000)

    def score() -> None:
        now = next(times)
        os.utime(model, (now, now))
        assert len(scoring({}, datastore)) == len(images)

    return score


def _bare(task: Task, committee: Committee, images: dict[str, str], *, as_ours: bool) -> Callable[[], None]:
    prepared = (prepare_image(task, path).as_tensor() for path in images.values())
    inputs = [window for image in prepared for window in windows_of(task, image)]
    return bare_passes(committee, inputs, as_ours=as_ours)
