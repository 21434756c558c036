"""A datastore's task, and the volumes, labels and refusals of its tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from fastapi import HTTPException

from svgd_label.tasks import Task

TASK = Task(name="hips", labels=("anterior", "posterior"), window=(16, 16, 16))
SHAPE = (8, 9, 10)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
INFO = {"label_info": [{"name": "anterior", "idx": 1}, {"name": "posterior", "idx": 2}], "client_id": "anna"}


def write(path: Path, array: np.ndarray[Any, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
    return path


def values(seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 3, SHAPE).astype(np.uint8)


def stored(path: str | Path) -> np.ndarray[Any, Any]:
    return np.asarray(nibabel.load(path).dataobj)


def refusal(status: int, call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(HTTPException) as caught:
        call(*arguments)
    assert caught.value.status_code == status
    return str(caught.value.detail)
