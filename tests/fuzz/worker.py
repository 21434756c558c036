"""Prepares for scoring each file whose path comes in, and says what came of it: one line of JSON each way."""

import json
import resource
import sys
import traceback

import numpy as np
import torch

from svgd_label.images import ImageError
from svgd_label.scoring import prepare
from svgd_label.tasks import Task, load_task


def answer(task: Task, path: str) -> dict[str, str]:
    """What ``prepare`` makes of a file: "works", "refused" with its sentence, or what should not be."""
    try:
        prepared = prepare(task, path, path)
    except ImageError as error:
        return {"result": "refused", "text": str(error)}
    except Exception:
        return {"result": "error", "text": traceback.format_exc()}
    values = prepared.image.numpy()
    if values.ndim != 4 or not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        return {"result": "out of range", "text": f"{values.shape} from {values.min()} to {values.max()}"}
    return {"result": "works", "text": ""}


def main() -> None:
    """Until the input ends."""
    torch.set_num_threads(1)
    task = load_task("sample")
    for line in sys.stdin:
        path = json.loads(line)
        found = answer(task, path)
        megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps({**found, "path": path, "megabytes": megabytes}), flush=True)


if __name__ == "__main__":
    main()
