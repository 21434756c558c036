"""The inference tasks: the particle-averaged segmentation, and where it is in doubt, as files for the viewer."""

import dataclasses
import tempfile
import time
from abc import abstractmethod
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import torch
from fastapi import HTTPException
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from numpy.typing import NDArray

from svgd_label.bands import BANDS, first_slice, thresholds
from svgd_label.checkpoint import UnreadableError
from svgd_label.images import ImageError, as_viewed
from svgd_label.inference import Segmentation
from svgd_label.server.committees import Committees, CrowdedError
from svgd_label.unlike import likeness

EXTENSIONS = (".nii.gz", ".nii", ".nrrd")


class CommitteeInfer(InferTask):  # type: ignore[misc]
    """What both tasks do: one image, the newest committee, one map on the image's own grid."""

    def __init__(self, committees: Committees, labels: dict[str, int], description: str) -> None:
        super().__init__(type=InferType.SEGMENTATION, labels=labels, dimension=3, description=description)
        self.committees = committees

    @abstractmethod
    def map_of(self, segmentation: Segmentation) -> NDArray[np.uint8]:
        """The map that goes into the file."""

    @abstractmethod
    def said_of(self, segmentation: Segmentation, version: int) -> dict[str, Any]:
        """What is said of it beside names and version."""

    def is_valid(self) -> bool:
        """Always on offer: without a committee a request is answered with a sentence, not with noise."""
        return True

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Segments ``request["image"]``, a path; gives the result's file and what is to be said of it.

        Raises:
            HTTPException: 404 no such image, 409 no committee yet, 415 an unknown result format, 422 an image that
                cannot be used, 503 the committee cannot be read or run at present, or too many wait for it.
        """
        path = request.get("image")
        if not isinstance(path, str) or not path:
            raise _gone()
        extension = str(request.get("result_extension") or ".nii.gz")
        if extension not in EXTENSIONS:
            raise HTTPException(415, f"result_extension {extension!r} is not offered; take {', '.join(EXTENSIONS)}")
        started = time.monotonic()
        try:
            proposed = self.committees.segment(path)
        except FileNotFoundError as error:
            raise _gone() from error
        except ImageError as error:
            raise (HTTPException(422, str(error)) if Path(path).exists() else _gone()) from error
        except (UnreadableError, CrowdedError) as error:
            raise HTTPException(503, f"{error}: try again") from error
        except torch.OutOfMemoryError as error:
            sentence = "the memory of the graphics card is in use, by a training for example: try again"
            raise HTTPException(503, sentence) from error
        if proposed is None:
            raise HTTPException(409, "there is no trained committee yet: train on a few saved labels, then ask again")
        version, segmentation = proposed
        said = self.said_of(segmentation, version)
        segmented = time.monotonic()
        compress = bool(request.get("result_compress", True))
        file = write_map(self.map_of(segmentation), segmentation.affine, extension, compress=compress)
        return str(file), {
            "label_names": self.labels,
            "model_version": version,
            **said,
            "latencies": {
                "infer": round(segmented - started, 3),
                "write": round(time.monotonic() - segmented, 3),
                "total": round(time.monotonic() - started, 3),
            },
        }


class SVGDInfer(CommitteeInfer):
    """The task ``svgd``: the structures, how large they are, and whether such an image was ever labelled."""

    def __init__(self, committees: Committees) -> None:
        task = committees.task
        super().__init__(
            committees,
            labels={name: value for value, name in enumerate(task.labels, start=1)},
            description=task.description or f"{task.name}: committee of {task.particles} networks trained by SVGD",
        )

    def map_of(self, segmentation: Segmentation) -> NDArray[np.uint8]:
        """The structures."""
        return segmentation.labels

    def said_of(self, segmentation: Segmentation, version: int) -> dict[str, Any]:
        """``volumes``: ml of each structure; ``unlike_labelled``, once enough labelled images have been scored."""
        said: dict[str, Any] = {
            "volumes": {
                name: {key: round(value, 4) for key, value in dataclasses.asdict(volume).items()}
                for name, volume in segmentation.volumes.items()
            }
        }
        pool = self.committees.pool
        found = likeness(segmentation.features, pool.features(version, pool.labelled()))
        if found is not None:
            looks = "unlike every one" if found.unlike else "like some"
            said["unlike_labelled"] = {
                "unlike": found.unlike,
                "distance": round(found.distance, 4),
                "limit": round(found.limit, 4),
                "words": f"To the committee this image looks {looks} of the {found.labelled} labelled images"
                + (": check its proposal with care." if found.unlike else "."),
            }
        return said


class UncertaintyInfer(CommitteeInfer):
    """The task ``svgd_uncertainty``: bands of doubt instead of structures, from the same pass."""

    def __init__(self, committees: Committees) -> None:
        super().__init__(
            committees, labels=dict(BANDS), description="Where the committee is unsure of its segmentation"
        )

    def map_of(self, segmentation: Segmentation) -> NDArray[np.uint8]:
        """The bands."""
        return segmentation.bands

    def said_of(self, segmentation: Segmentation, version: int) -> dict[str, Any]:
        """``thresholds`` in nats, and the slice to ``look_first`` at, None where there is no doubt."""
        first = first_slice(segmentation.bands, segmentation.affine)
        return {
            "measure": "entropy of the particle average, nats",
            "thresholds": {name: round(nats, 4) for name, nats in thresholds().items()},
            "look_first": None if first is None else dataclasses.asdict(first),
        }


def _gone() -> HTTPException:
    return HTTPException(404, "there is no such image on this server")


def write_map(values: NDArray[np.uint8], affine: NDArray[np.float64], extension: str, *, compress: bool) -> Path:
    """A temporary file in the viewer's format; the caller removes it."""
    with tempfile.NamedTemporaryFile(suffix=extension, delete=False) as file:
        path = Path(file.name)
    try:
        _write(path, values, affine, extension, compress=compress)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def _write(
    path: Path, values: NDArray[np.uint8], affine: NDArray[np.float64], extension: str, *, compress: bool
) -> None:
    if extension == ".nrrd":
        viewed = as_viewed(affine, values.shape)
        if viewed is not affine:
            values = values[:, :, ::-1]
        # NRRD counts in LPS, NIfTI in RAS millimetres.
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ viewed
        header = {
            "space": "left-posterior-superior",
            "kinds": ["domain", "domain", "domain"],
            "space directions": affine[:3, :3].T,
            "space origin": affine[:3, 3],
            "encoding": "gzip" if compress else "raw",
        }
        nrrd.write(str(path), values, header)
    else:
        nibabel.save(nibabel.Nifti1Image(values, affine), path)
