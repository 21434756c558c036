"""A committee to start from: trained on a data set's pool by the project's own trainer, measured on dev and test."""

import json
import logging
import sys
import time
from pathlib import Path

import numpy as np

from svgd_label import checkpoint, hardware
from svgd_label.device import default_device
from svgd_label.experiments.dataset import Dataset
from svgd_label.inference import evaluate
from svgd_label.tasks import Task
from svgd_label.training import train

logger = logging.getLogger(__name__)


def pretrain(task: Task, data: Path, *, steps: int, seed: int, weights: Path, report: Path) -> dict[str, object]:
    """Trains on the pool, writes the committee in half precision and what it reaches.

    Args:
        data: a folder in MSD layout with splits.json; ``dev`` and ``test`` are measured where they are there.
        steps: length of the one training.
        weights: where the committee goes, as model version 0.
        report: a JSON file with the Dice per structure of each split, the time and the hardware.

    Returns:
        What the report holds.
    """
    dataset = Dataset.read(data)
    task = task.model_copy(update={"steps": steps})
    committee = checkpoint.new_committee(task, seed=seed).to(default_device())
    started = time.monotonic()
    result = train(task, dataset.splits["pool"], committee, seed=seed)
    minutes = (time.monotonic() - started) / 60
    checkpoint.save(weights, committee, task, version=0, half=True)
    # What is shipped is measured, rounded to half precision as it is.
    committee = checkpoint.load(weights, task, device=default_device()).committee
    content: dict[str, object] = {
        "command": " ".join(["python", *sys.argv]),
        "task": task.name,
        "seed": seed,
        "steps": result.steps,
        "batch": task.batch,
        "particles": task.particles,
        "minutes": round(minutes, 1),
        "hardware": hardware.describe(),
        "distance_between_particles": round(result.distance, 3),
        "weights_bytes": weights.stat().st_size,
    }
    for split in ("dev", "test"):
        if cases := dataset.splits.get(split):
            scores = np.asarray(evaluate(task, committee, [(case.image, case.label) for case in cases]))
            means = zip(task.labels, np.nanmean(scores, axis=0).tolist(), strict=True)
            content[split] = {
                "cases": len(cases),
                "dice": {name: round(mean, 4) for name, mean in means},
                "mean_dice": round(float(np.nanmean(scores)), 4),
                "worst_case": round(float(np.nanmin(np.nanmean(scores, axis=1))), 4),
            }
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    logger.info("%s", content)
    return content
