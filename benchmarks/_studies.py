"""Large studies for the benchmarks of the server: many images known, scored and ranked, without hours of scoring."""

import os
from pathlib import Path

import nibabel
import numpy as np

from svgd_label.active_step import settle
from svgd_label.pool import Database, Pool, RankingRow, ScoreRow, Studies
from svgd_label.tasks import Task

VERSION = 1
STOCK_APP = '''\
"""A MONAI Label app without tasks: its own datastore, its own random strategy."""

from monailabel.interfaces.app import MONAILabelApp


class Stock(MONAILabelApp):
    def __init__(self, app_dir, studies, conf):
        super().__init__(app_dir=app_dir, studies=studies, conf=conf, name="stock")
'''


def make_images(folder: Path, number: int, shape: tuple[int, int, int] = (8, 8, 8)) -> list[str]:
    """``number`` images that are one file under many names; the ids."""
    folder.mkdir(parents=True)
    ids = [f"image_{n:05}" for n in range(number)]
    first = folder / f"{ids[0]}.nii.gz"
    voxels = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), first)
    for image in ids[1:]:
        os.link(first, folder / f"{image}.nii.gz")
    return ids


def score_images(folder: Path, task: Task, images: list[str], labelled: int) -> None:
    """Puts random scores of all images into the state folder, ``labelled`` of them with a label."""
    rng = np.random.default_rng(0)
    database = Database(folder / ".svgd", task=task.name)
    pool = Pool(database, validation="none", max_frequency=task.max_frequency)
    settle(pool, task)
    final = folder / "labels" / "final"
    final.mkdir(parents=True)
    for image in images[:labelled]:
        os.link(folder / f"{image}.nii.gz", final / f"{image}.nii.gz")
    Studies(folder.resolve(), pool).reconcile()
    with database.transaction():
        for image, entropy in zip(images, rng.random(len(images)).tolist(), strict=True):
            pool.write_score(VERSION, ScoreRow(image, entropy, entropy, entropy, entropy))
        pairs = [(image, partner) for image in images for partner in images[:labelled] if image != partner]
        values = rng.random(len(pairs)).tolist()
        pool.write_mutual_information((*pair, value) for pair, value in zip(pairs, values, strict=True))
        pool.replace_ranking(VERSION, [RankingRow(image, 0.5, 0.5, 0.5) for image in images])
    database.set("read", "yes")
    database.close()


def stock_app(folder: Path) -> Path:
    """A folder with MONAI Label's app class and nothing else."""
    folder.mkdir(parents=True)
    (folder / "main.py").write_text(STOCK_APP, encoding="utf-8")
    return folder
