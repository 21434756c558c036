"""Reads an uploaded file: raw voxels, NIfTI or NRRD, never more of it than the image has room for."""

import bz2
import gzip
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
from numpy.typing import NDArray

from svgd_label.images import as_viewed
from svgd_label.images.files import HEADER_ROOM, SPACES
from svgd_label.labels.errors import LabelError, times
from svgd_label.labels.names import Segments, check_values, refuse_bands

RAW_TYPES = {1: "<u1", 2: "<u2", 4: "<u4"}


@dataclass(frozen=True)
class Upload:
    """What a file holds: values on its own grid, and the names that the file itself gives to them."""

    array: NDArray[Any]
    affine: NDArray[np.float64]
    segments: Segments | None = None


def read_upload(file: Path, shape: tuple[int, ...], affine: NDArray[np.float64]) -> Upload:
    """What an upload holds, on its own grid.

    Args:
        file: as for :func:`svgd_label.labels.convert_label`.
        shape, affine: the image's, which raw voxels share, and which limit how much of a file is read.

    Raises:
        LabelError: an unknown format, unreadable, cut off, or too large for the image.
    """
    name = file.name.lower()
    readers = {".bin": _read_raw, ".nrrd": _read_nrrd, ".nii": _read_nifti, ".nii.gz": _read_nifti}
    reader = next((reader for suffix, reader in readers.items() if name.endswith(suffix)), None)
    if reader is None:
        raise LabelError(f"{file.name} is in no known format; send {', '.join(readers)}")
    try:
        if not file.stat().st_size:
            raise LabelError("the file is empty")
        return reader(file, shape, affine)
    except LabelError:
        raise
    except Exception as error:  # readers raise anything, from zlib.error to IndexError
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise LabelError(f"the file cannot be read ({reason}); is it complete?") from error


def _read_raw(file: Path, shape: tuple[int, ...], affine: NDArray[np.float64]) -> Upload:
    size, voxels = file.stat().st_size, int(np.prod(shape))
    dtype = RAW_TYPES.get(size // voxels)
    if size % voxels or dtype is None:
        raise LabelError(f"{size} bytes do not hold {times(shape)} = {voxels} voxels of 1, 2 or 4 bytes")
    # A page with OHIF in it sends them.
    return Upload(np.fromfile(file, dtype=dtype).reshape(shape, order="F"), as_viewed(affine, shape))


def _read_nifti(file: Path, shape: tuple[int, ...], _: NDArray[np.float64]) -> Upload:
    with file.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    limit = int(np.prod(shape)) * 8 + HEADER_ROOM
    with gzip.open(file) if packed else file.open("rb") as stream:
        data = stream.read(limit + 1)  # up to the end of a whole file, so that gzip compares its checksum
    is_second = 540 in (int.from_bytes(data[:4], "little"), int.from_bytes(data[:4], "big"))  # sizeof_hdr
    kind = nibabel.Nifti2Image if is_second else nibabel.Nifti1Image
    image = kind.from_bytes(data)
    _check_shape(_spatial(image.shape), shape)
    dtype = image.get_data_dtype()
    if dtype.fields is not None or dtype.kind not in "iuf":
        raise LabelError(f"its voxels are {dtype}, where whole numbers are needed")
    if len(data) > limit:
        raise LabelError("the file is longer than its header announces")
    return Upload(np.asanyarray(image.dataobj).reshape(_spatial(image.shape)), np.asarray(image.affine, np.float64))


def _read_nrrd(file: Path, shape: tuple[int, ...], _: NDArray[np.float64]) -> Upload:
    with file.open("rb") as stream:
        head = BytesIO(stream.read(HEADER_ROOM))  # one that does not end would be read as a single line
        header = nrrd.read_header(head)
        stream.seek(head.tell())
        if {"data file", "datafile"} & set(header):
            raise LabelError("its voxels are in another file; save header and voxels in one")
        if any(header.get(skip) for skip in ("byte skip", "byteskip", "line skip", "lineskip")):
            raise LabelError("it skips bytes before its voxels; save it without 'byte skip' and 'line skip'")
        sizes = tuple(int(n) for n in header["sizes"])
        directions = np.atleast_2d(header["space directions"]) if "space directions" in header else None
        if directions is None or "space origin" not in header:
            raise LabelError("its header lacks 'space directions' or 'space origin', so its place is unknown")
        spatial = np.isfinite(directions).all(axis=1)
        if len(spatial) != len(sizes) or spatial.sum() != 3:
            raise LabelError(f"it has {times(sizes)} values; a single 3-D volume is needed")
        layers = int(np.prod([n for n, is_spatial in zip(sizes, spatial, strict=True) if not is_spatial]))
        if layers != 1:
            refuse_bands(name for name, _ in _segments_of(header) or [])
            raise LabelError(f"it has {layers} layers, so segments overlap; let them not overlap and save again")
        sizes = tuple(n for n, is_spatial in zip(sizes, spatial, strict=True) if is_spatial)
        _check_shape(sizes, shape)
        limit = int(np.prod(sizes)) * 8
        encoding = header.get("encoding")
        if encoding in ("gzip", "gz"):
            raw = gzip.GzipFile(fileobj=stream).read(limit + 1)
        elif encoding in ("bzip2", "bz2"):
            raw = bz2.BZ2File(stream).read(limit + 1)
        elif encoding == "raw":
            raw = stream.read(limit + 1)
        else:
            raise LabelError(f"the encoding {encoding!r} is not understood; save it as raw or gzip")
    header["encoding"] = "raw"
    array = nrrd.read_data(header, BytesIO(raw)).reshape(sizes, order="F")
    space = str(header.get("space", "")).lower()
    if space not in SPACES:
        raise LabelError(f"the space {space!r} is not understood; save it in left-posterior-superior")
    affine = np.eye(4)
    affine[:3, :3] = directions[spatial].T
    affine[:3, 3] = header["space origin"]
    segments = _segments_of(header)
    check_values(segments or [], "LabelValue")
    return Upload(array, np.diag([*SPACES[space], 1.0]) @ affine, segments)


def _segments_of(header: Mapping[str, Any]) -> Segments | None:
    numbers = sorted(int(found[1]) for key in header if (found := re.fullmatch(r"Segment(\d+)_Name", key)))
    named = [(str(header[f"Segment{n}_Name"]), int(header.get(f"Segment{n}_LabelValue", n + 1))) for n in numbers]
    return named or None


def _spatial(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[:3]) if all(n == 1 for n in shape[3:]) else tuple(shape)


def _check_shape(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Before any voxel is read: the same sides in any order, since axes may be swapped."""
    if sorted(shape) != sorted(expected):
        raise LabelError(f"it has {times(shape)} voxels, the image {times(expected)}; save it on the image's grid")
