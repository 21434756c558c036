"""An uploaded label file becomes the task's values on the image's own grid, or is refused in one sentence."""

import bz2
import contextlib
import gzip
import itertools
import os
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray

from svgd_label.bands import BANDS
from svgd_label.errors import UserError
from svgd_label.images import as_viewed, geometry
from svgd_label.images.files import HEADER_ROOM, SPACES

BACKGROUND = "background"
TOLERANCE = 1e-3  # mm, at the corners of the volume
LARGEST_VALUE = 65535
RAW_TYPES = {1: "<u1", 2: "<u2", 4: "<u4"}

Segments = list[tuple[str, int]]  # name and value, in the order of the upload


class LabelError(UserError):
    """A label that cannot be used or stored; the sentence names its image and says why."""


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


@dataclass(frozen=True)
class _Upload:
    """What a file holds: values on its own grid, and the names that the file itself gives to them."""

    array: NDArray[Any]
    affine: NDArray[np.float64]
    segments: Segments | None = None


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
        upload = _read(file, shape, affine)
        array = _codes(_on_grid(upload, shape, affine))
        # A .seg.nrrd names its own values. They stay right where an annotator has deleted a segment, while the idx
        # that Slicer sends beside the file counts the segments that are left.
        segments = upload.segments or _by_client(label_info, array, raw=file.name.lower().endswith(".bin"))
        lookup, ignored, missing = _lookup(array, segments, labels, aliases)
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
    _on_grid(_read(file, shape, affine), shape, affine)


def write_label(converted: ConvertedLabel, path: Path) -> None:
    """Writes a label as compressed NIfTI so that ``path`` holds either the old file or the whole new one, also after
    a power cut. Equal labels give equal bytes.

    Raises:
        LabelError: the disk is full, read-only or gone; ``path`` is as it was.
    """
    label = nibabel.Nifti1Image(converted.array, converted.affine)
    label.header.set_xyzt_units("mm")
    label.set_qform(converted.affine, code="scanner")
    label.set_sform(converted.affine, code="scanner")
    data = gzip.compress(label.to_bytes(), compresslevel=6, mtime=0)
    # Not named like a label: whoever lists the folder must not take it for one.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise LabelError(
            f"{path}: the label cannot be stored ({error.strerror}); make room or allow writing there, then save again"
        ) from error


def _read(file: Path, shape: tuple[int, ...], affine: NDArray[np.float64]) -> _Upload:
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


def _read_raw(file: Path, shape: tuple[int, ...], affine: NDArray[np.float64]) -> _Upload:
    size, voxels = file.stat().st_size, int(np.prod(shape))
    dtype = RAW_TYPES.get(size // voxels)
    if size % voxels or dtype is None:
        raise LabelError(f"{size} bytes do not hold {_times(shape)} = {voxels} voxels of 1, 2 or 4 bytes")
    # A page with OHIF in it sends them.
    return _Upload(np.fromfile(file, dtype=dtype).reshape(shape, order="F"), as_viewed(affine, shape))


def _read_nifti(file: Path, shape: tuple[int, ...], _: NDArray[np.float64]) -> _Upload:
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
    return _Upload(np.asanyarray(image.dataobj).reshape(_spatial(image.shape)), np.asarray(image.affine, np.float64))


def _read_nrrd(file: Path, shape: tuple[int, ...], _: NDArray[np.float64]) -> _Upload:
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
            raise LabelError(f"it has {_times(sizes)} values; a single 3-D volume is needed")
        layers = int(np.prod([n for n, is_spatial in zip(sizes, spatial, strict=True) if not is_spatial]))
        if layers != 1:
            _refuse_bands(name for name, _ in _segments_of(header) or [])
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
    _check_values(segments or [], "LabelValue")
    return _Upload(array, np.diag([*SPACES[space], 1.0]) @ affine, segments)


def _segments_of(header: Mapping[str, Any]) -> Segments | None:
    numbers = sorted(int(found[1]) for key in header if (found := re.fullmatch(r"Segment(\d+)_Name", key)))
    named = [(str(header[f"Segment{n}_Name"]), int(header.get(f"Segment{n}_LabelValue", n + 1))) for n in numbers]
    return named or None


def _on_grid(upload: _Upload, shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[Any]:
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
        raise LabelError(f"it has {_times(array.shape)} voxels, the image {_times(shape)}; save it on the image's grid")
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


def _by_client(label_info: Any, array: NDArray[np.uint16], *, raw: bool) -> Segments | None:
    """Names and values as the client means them; None where it sent no names."""
    if not label_info:
        return None
    if not isinstance(label_info, list) or not all(isinstance(entry, dict) for entry in label_info):
        raise LabelError('label_info must be a list like [{"name": "anterior", "idx": 1}]')
    entries: list[tuple[str, int | None]] = []
    for entry in label_info:
        name, idx = entry.get("name"), entry.get("idx")
        if not isinstance(name, str):
            raise LabelError("each entry of label_info needs a name")
        if isinstance(idx, float) and idx.is_integer():
            idx = int(idx)
        if "idx" in entry and (not isinstance(idx, int) or isinstance(idx, bool)):
            raise LabelError(f"idx {idx!r} of {name!r} in label_info is no whole number")
        if idx or plain_name(name) != BACKGROUND:
            entries.append((name, idx))
    by_order = [(name, position) for position, (name, _) in enumerate(entries, start=1)]
    by_idx = [(name, idx) for name, idx in entries if idx is not None]
    if not by_idx:
        return by_order
    if len(by_idx) < len(entries):
        raise LabelError("some segments in label_info have an idx and others have none; give one to each, or to none")
    _check_values(by_idx, "idx in label_info")
    numbers = [idx for _, idx in by_idx]
    # Slicer's panel leaves out 'background' and scribbles, numbers the file 1, 2, ... and yet counts the left-out
    # ones in idx. So where idx ascends with gaps, the values in the file decide which numbering was meant. Raw voxels
    # come from a browser, never from Slicer.
    if raw or numbers != sorted(numbers) or numbers == list(range(1, len(numbers) + 1)):
        return by_idx
    present = _present(array)
    fits_idx, fits_order = present <= set(numbers), present <= set(range(1, len(numbers) + 1))
    if fits_idx and fits_order and {n for n, v in by_idx if v in present} != {n for n, v in by_order if v in present}:
        raise LabelError(
            f"its values {sorted(present)} may count the segments or be their idx in label_info, which would be "
            "different structures; number the segments 1, 2, 3, ... without gaps and save again"
        )
    return by_order if fits_order and not fits_idx else by_idx


def _lookup(
    array: NDArray[np.uint16], segments: Segments | None, labels: Sequence[str], aliases: Mapping[str, Sequence[str]]
) -> tuple[NDArray[np.uint8], list[str], list[str]]:
    """Table from a value in the file to the task's value, with the names left out and the structures not named."""
    known = {plain_name(alias): labels.index(label) + 1 for label, names in aliases.items() for alias in names}
    known |= {plain_name(label): value for value, label in enumerate(labels, start=1)}
    if segments is None:
        segments = list(zip(labels, range(1, len(labels) + 1), strict=True))
    present = _present(array)
    unnamed = sorted(present - {value for _, value in segments})
    if unnamed:
        raise LabelError(
            f"it holds the value {unnamed[0]}, which belongs to no segment; the segments are "
            f"{', '.join(f'{value} {name}' for name, value in segments) or 'none'}"
        )
    segments = [(name, value) for name, value in segments if plain_name(name) != BACKGROUND and value]
    ignored = [(name, value) for name, value in segments if plain_name(name) not in known]
    named = {known[plain_name(name)] for name, _ in segments if plain_name(name) in known}
    missing = [label for value, label in enumerate(labels, start=1) if value not in named]
    unknown = [name for name, value in ignored if value in present]
    _refuse_bands(unknown)
    if unknown and missing:
        raise LabelError(
            f"it has voxels of {', '.join(map(repr, unknown))}, which the task does not know, and no segment "
            f"{', '.join(map(repr, missing))}; rename the segment to one of {', '.join(known)}"
        )
    lookup = np.zeros(LARGEST_VALUE + 1, np.uint8)
    for name, value in segments:
        lookup[value] = known.get(plain_name(name), 0)
    return lookup, [name for name, _ in ignored], missing


def _refuse_bands(names: Iterable[str]) -> None:
    """Bands of doubt, which a viewer shows as segments over the structures: saved with these, they would be holes."""
    shown = [name for name in names if plain_name(name) in BANDS]
    if shown:
        raise LabelError(
            f"its segments {', '.join(map(repr, shown))} show where the committee is unsure and cover the structures "
            "beneath; delete these segments and save again"
        )


def _present(array: NDArray[np.uint16]) -> set[int]:
    """The values above 0 that occur; a table instead of sorting, which takes seconds on a CT."""
    seen = np.zeros(LARGEST_VALUE + 1, bool)
    seen[array] = True
    return set(np.flatnonzero(seen).tolist()) - {0}


def _check_values(segments: Segments, what: str) -> None:
    """Refuses values that no voxel can have, the background's for a structure, and one value for two names."""
    for name, value in segments:
        if not (1 <= value <= LARGEST_VALUE or (value == 0 and plain_name(name) == BACKGROUND)):
            raise LabelError(f"{name!r} has {value} as {what}; number the segments from 1 to {LARGEST_VALUE}")
    if len({value for _, value in segments}) < len(segments):
        raise LabelError(f"two segments have the same {what}; give each its own and save again")


def plain_name(name: str) -> str:
    """A structure's name without what people write differently: case, and blanks around it."""
    return name.strip().casefold()


def _spatial(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[:3]) if all(n == 1 for n in shape[3:]) else tuple(shape)


def _check_shape(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Before any voxel is read: the same sides in any order, since axes may be swapped."""
    if sorted(shape) != sorted(expected):
        raise LabelError(f"it has {_times(shape)} voxels, the image {_times(expected)}; save it on the image's grid")


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _voxel(affine: NDArray[np.float64]) -> str:
    return " x ".join(f"{side:.4g}" for side in np.linalg.norm(affine[:3, :3], axis=0))


def _origin(affine: NDArray[np.float64]) -> str:
    return "(" + ", ".join(f"{x:.2f}" for x in affine[:3, 3]) + ")"
