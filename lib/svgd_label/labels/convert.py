"""Takes an upload to the image's grid and the task's values."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray

from svgd_label.images import geometry
from svgd_label.labels.errors import LabelError, times
from svgd_label.labels.names import LARGEST_VALUE, lookup_table, named_by_client
from svgd_label.labels.upload import Upload, read_upload

TOLERANCE = 1e-3  # mm, at the corners of the volume


@dataclass(frozen=True)
class ConvertedLabel:
    """A label in the one form in which it is stored.

    Attributes:
        array: (X, Y, Z) uint8 in the voxel order of the image; 0 is background, i the task's i-th structure.
        affine: (4, 4) float64, the image's own, voxel to RAS millimetres.
        ignored: names of segments of the upload that the task does not know, left out.
        missing: structures of the task that the upload did not name.
    """

    array: NDArray[np.uint8]
    affine: NDArray[np.float64]
    ignored: list[str]
    missing: list[str]


def convert_label(
    file: Path,
    label_info: list[dict[str, Any]] | None,
    *,
    image: Path,
    labels: Sequence[str],
    aliases: Mapping[str, Sequence[str]],
) -> ConvertedLabel:
    """Reads an uploaded label.

    Values are told apart by the names of the segments, in ``label_info`` or in a ``.seg.nrrd`` file itself; without
    names they are the task's own, 1 to n. Names match without regard to case and surrounding blanks, then by alias.
    The same grid in another orientation (axes swapped or flipped) is understood.

    Args:
        file: .nii, .nii.gz, .nrrd, .seg.nrrd, or .bin (raw voxels in the image's order, the first axis fastest).
        label_info: what the client sent, ``[{"name": "anterior", "idx": 1}, ...]``.
        image: the image that was labelled; a file or a folder of DICOM.
        labels: the task's structures; the value of each is its position + 1.
        aliases: other names of the structures.

    Raises:
        LabelError: unreadable or cut-off file, another grid, values or names that cannot be mapped.
        svgd_label.images.ImageError: the image itself cannot be read.
    """
    shape, affine = geometry(image)
    try:
        upload = read_upload(file, shape, affine)
        array = _codes(_on_grid(upload, shape, affine))
        # A .seg.nrrd names its own values. They stay right where an annotator has deleted a segment, while the idx
        # that Slicer sends beside the file counts the segments that are left.
        segments = upload.segments or named_by_client(label_info, array, raw=file.name.lower().endswith(".bin"))
        lookup, ignored, missing = lookup_table(array, segments, labels, aliases)
    except LabelError as error:
        raise LabelError(f"The label of {image.name} was refused: {error}") from error
    return ConvertedLabel(lookup[array], affine, ignored, missing)


def check_grid(file: Path, *, image: Path) -> None:
    """Refuses a label file that does not lie on the image's grid, in whichever orientation.

    Raises:
        LabelError: another grid, or unreadable.
        svgd_label.images.ImageError: the image itself cannot be read.
    """
    shape, affine = geometry(image)
    _on_grid(read_upload(file, shape, affine), shape, affine)


def _on_grid(upload: Upload, shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[Any]:
    """The upload's values in the voxel order of the image."""
    if not np.isfinite(upload.affine).all() or abs(np.linalg.det(upload.affine[:3, :3])) < 1e-9:
        raise LabelError("its affine has no volume")
    # Seen from the image's voxels, so that oblique axes near 45 degrees cannot be taken for one another.
    orientation = io_orientation(np.linalg.inv(affine) @ upload.affine)
    if not np.isfinite(orientation).all():
        raise LabelError("its axes do not fit those of the image")
    array: NDArray[Any] = apply_orientation(upload.array, orientation)
    turned = upload.affine @ inv_ornt_aff(orientation, upload.array.shape)
    if array.shape != tuple(shape):
        raise LabelError(f"it has {times(array.shape)} voxels, the image {times(shape)}; save it on the image's grid")
    corners = np.array([[*corner, 1] for corner in itertools.product(*((0, n - 1) for n in shape))])
    distance = float(np.linalg.norm((corners @ (turned - affine).T)[:, :3], axis=1).max())
    if not distance <= TOLERANCE:
        raise LabelError(
            f"its corners lie up to {distance:.3g} mm from those of the image "
            f"(voxels of {_voxel(turned)} mm at {_origin(turned)}, the image's {_voxel(affine)} mm at "
            f"{_origin(affine)}); save it on the image's grid"
        )
    return array


def _codes(array: NDArray[Any]) -> NDArray[np.uint16]:
    """Values as whole numbers from 0 to LARGEST_VALUE."""
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise LabelError("it holds NaN or infinite values")
        if (array != np.floor(array)).any():
            raise LabelError(f"it holds {array[array != np.floor(array)][0]:g}, where whole numbers are needed")
    low, high = array.min(), array.max()
    if low < 0 or high > LARGEST_VALUE:
        raise LabelError(f"it holds the value {low if low < 0 else high:g}; segments are numbered from 1")
    return array.astype(np.uint16)


def _voxel(affine: NDArray[np.float64]) -> str:
    return " x ".join(f"{side:.4g}" for side in np.linalg.norm(affine[:3, :3], axis=0))


def _origin(affine: NDArray[np.float64]) -> str:
    return "(" + ", ".join(f"{x:.2f}" for x in affine[:3, 3]) + ")"
