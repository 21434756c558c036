"""The inference task ``svgd``: the particle-averaged segmentation on the image's own grid, as a file for the viewer."""

import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
from fastapi import HTTPException
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from svgd_label.images import ImageError, as_viewed
from svgd_label.inference import Segmentation
from svgd_label.server.committees import Committees

EXTENSIONS = (".nii.gz", ".nii", ".nrrd")


class SVGDInfer(InferTask):  # type: ignore[misc]
    """Segments one image with the newest committee."""

    def __init__(self, committees: Committees) -> None:
        task = committees.task
        super().__init__(
            type=InferType.SEGMENTATION,
            labels={name: value for value, name in enumerate(task.labels, start=1)},
            dimension=3,
            description=task.description or f"{task.name}: committee of {task.particles} networks trained by SVGD",
        )
        self.committees = committees

    def is_valid(self) -> bool:
        """Always on offer: without a committee a request is answered with a sentence, not with noise."""
        return True

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Segments ``request["image"]``, a path; gives the result's file and what is to be said of it.

        Raises:
            HTTPException: 404 no such image, 409 no committee yet, 415 an unknown result format, 422 an image that
                cannot be used.
        """
        path = request.get("image")
        if not isinstance(path, str) or not path or not Path(path).exists():
            raise HTTPException(404, "there is no such image on this server")
        extension = str(request.get("result_extension") or ".nii.gz")
        if extension not in EXTENSIONS:
            raise HTTPException(415, f"result_extension {extension!r} is not offered; take {', '.join(EXTENSIONS)}")
        started = time.monotonic()
        try:
            proposed = self.committees.segment(path)
        except ImageError as error:
            raise HTTPException(422, str(error)) from error
        if proposed is None:
            raise HTTPException(409, "there is no trained committee yet: save a few labels and train, then ask again")
        version, segmentation = proposed
        segmented = time.monotonic()
        file = write_segmentation(segmentation, extension, compress=bool(request.get("result_compress", True)))
        return str(file), {
            "label_names": self.labels,
            "model_version": version,
            "latencies": {
                "infer": round(segmented - started, 3),
                "write": round(time.monotonic() - segmented, 3),
                "total": round(time.monotonic() - started, 3),
            },
        }


def write_segmentation(segmentation: Segmentation, extension: str, *, compress: bool) -> Path:
    """A temporary file in the viewer's format; the caller removes it."""
    with tempfile.NamedTemporaryFile(suffix=extension, delete=False) as file:
        path = Path(file.name)
    if extension == ".nrrd":
        labels, affine = segmentation.labels, as_viewed(segmentation.affine, segmentation.labels.shape)
        if affine is not segmentation.affine:
            labels = labels[:, :, ::-1]
        # NRRD counts in LPS, NIfTI in RAS millimetres.
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
        header = {
            "space": "left-posterior-superior",
            "kinds": ["domain", "domain", "domain"],
            "space directions": affine[:3, :3].T,
            "space origin": affine[:3, 3],
            "encoding": "gzip" if compress else "raw",
        }
        nrrd.write(str(path), labels, header)
    else:
        nibabel.save(nibabel.Nifti1Image(segmentation.labels, segmentation.affine), path)
    return path
