"""The three file formats of a volume: what its header says is checked before memory is asked for its voxels."""

import bz2
import gzip
import math
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any, cast

import nibabel
import nrrd
import numpy as np
import psutil
import pydicom
from monai.data.image_reader import PydicomReader
from numpy.typing import NDArray
from pydicom.misc import is_dicom
from pydicom.uid import DeflatedExplicitVRLittleEndian

EXTENSIONS = (".nii.gz", ".nii", ".nrrd")
HEADER_ROOM = 1 << 22  # bytes a file may hold besides its voxels: header, extensions, segment names
LARGEST_GZIP_RATIO = 1032  # of deflate itself
SLICE_TAGS = ("Rows", "Columns", "InstanceNumber", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient")
UNEVEN = 0.2  # of a voxel, from an even row of slices; a missing slice is off by 1, a table's jitter by hundredths
# Signs that take a NRRD space to RAS; one without a name is LPS, as MONAI and ITK read it.
SPACES = {
    "": (-1, -1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
}


class Unusable(Exception):
    """Why a file cannot be used, without its name."""


class NoMemory(Unusable):
    """The machine could hold it, but not now."""


@dataclass(frozen=True)
class Volume:
    """What a file announces, and how to read it.

    Attributes:
        shape: (X, Y, Z), each at least 2.
        affine: (4, 4) float64, voxel to RAS millimetres, with a volume.
        read: the voxels (X, Y, Z); raises :class:`Unusable`, or whatever a library raises on broken data.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    read: Callable[[], NDArray[Any]]


def open_volume(path: Path) -> Volume:
    """Reads a header, or those of a folder of DICOM files.

    Raises:
        Unusable: what the header says cannot be used, or cannot be true. Libraries raise anything else.
    """
    if path.is_dir():
        return _dicom(path)
    if not stat.S_ISREG(path.stat().st_mode):
        raise Unusable("not a regular file")
    if not path.name.lower().endswith(EXTENSIONS):
        raise Unusable(f"not a known image format; use {', '.join(EXTENSIONS)} or a folder of DICOM")
    if path.stat().st_size == 0:
        raise Unusable("the file is empty")
    return _nrrd(path) if path.name.lower().endswith(".nrrd") else _nifti(path)


def times(shape: Sequence[int]) -> str:
    """ "3 x 4 x 5"."""
    return " x ".join(map(str, shape)) or "no"


def check_memory(shape: Sequence[int], bytes_per_voxel: int) -> None:
    """Refuses what would not fit into the memory that is free now.

    Raises:
        Unusable: it would not; :class:`NoMemory` where the machine could hold it.
    """
    needed, memory = math.prod(shape) * bytes_per_voxel, psutil.virtual_memory()
    if needed > memory.total:
        raise Unusable(f"{times(shape)} voxels do not fit into this machine's memory")
    if needed > memory.available:
        raise NoMemory(f"{times(shape)} voxels do not fit into the memory that is free at present")


def _nifti(path: Path) -> Volume:
    with path.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"

    def opened() -> IO[bytes]:
        return cast(IO[bytes], gzip.open(path)) if packed else path.open("rb")

    with opened() as unpacked:
        head = unpacked.read(HEADER_ROOM)
    try:
        is_second = 540 in (int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big"))  # sizeof_hdr
        kind = nibabel.Nifti2Image if is_second else nibabel.Nifti1Image
        header = kind.header_class.from_fileobj(BytesIO(head))
        dtype = header.get_data_dtype()
        offset = int(header["vox_offset"])
    except Exception as error:  # from HeaderDataError to OverflowError
        raise Unusable(f"no NIfTI header can be read ({short(error)})") from error
    if dtype.fields is not None or dtype.kind not in "iufb":
        raise Unusable("holds colour or complex values; only single grey values can be used")
    shape = _spatial(header.get_data_shape(), dtype.itemsize)
    if not 0 <= offset <= HEADER_ROOM:
        raise Unusable(f"its header places the voxels at byte {offset}")
    affine = _checked_affine(header.get_best_affine())
    expected = offset + math.prod(shape) * dtype.itemsize
    size = path.stat().st_size
    if size * (LARGEST_GZIP_RATIO if packed else 1) < expected:
        raise Unusable(f"cut off; {expected} bytes are announced, {size} are there")

    def read() -> NDArray[Any]:
        with opened() as stream:
            # To the end of a whole file, so that gzip compares its checksum.
            data = stream.read(expected + HEADER_ROOM + 1)
        if len(data) < expected:
            raise Unusable(f"cut off; {expected} bytes are announced, {len(data)} are there")
        if len(data) > expected + HEADER_ROOM:
            raise Unusable("the file is longer than its header announces")
        return np.asanyarray(kind.from_bytes(data).dataobj).reshape(shape)

    return Volume(shape, affine, read)


def _nrrd(path: Path) -> Volume:
    try:
        with path.open("rb") as stream:
            head = BytesIO(stream.read(HEADER_ROOM))
        header = nrrd.read_header(head)
        begin = head.tell()
        sizes = [int(n) for n in header["sizes"]]
        dtype = nrrd.reader._determine_datatype(header)
    except Exception as error:
        raise Unusable(f"no NRRD header can be read ({short(error)})") from error
    if {"data file", "datafile"} & set(header):
        raise Unusable("its voxels are in another file; save header and voxels in one")
    if any(header.get(skip) for skip in ("byte skip", "byteskip", "line skip", "lineskip")):
        raise Unusable("it skips bytes before its voxels; save it without 'byte skip' and 'line skip'")
    if dtype.kind not in "iuf":
        raise Unusable("holds blocks; only single grey values can be used")
    if "space directions" not in header or "space origin" not in header:
        raise Unusable("its header lacks 'space directions' or 'space origin', so its place is unknown")
    shape = _spatial(sizes, dtype.itemsize)
    space = str(header.get("space", "")).lower()
    directions, origin = np.atleast_2d(header["space directions"]), np.asarray(header["space origin"])
    if space not in SPACES or directions.shape != (3, 3) or origin.shape != (3,):
        raise Unusable(f"its place in the space {space!r} is not understood; save it in left-posterior-superior")
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions.T, origin
    affine = _checked_affine(np.diag([*SPACES[space], 1.0]) @ affine)
    unpack: dict[str, Any] = {"gzip": gzip.open, "gz": gzip.open, "bzip2": bz2.open, "bz2": bz2.open}
    encoding = header.get("encoding")
    if encoding != "raw" and encoding not in unpack:
        raise Unusable(f"the encoding {encoding!r} is not understood; save it as raw or gzip")

    def read() -> NDArray[Any]:
        expected = math.prod(shape) * dtype.itemsize
        with path.open("rb") as stream:
            stream.seek(begin)
            data = (stream if encoding == "raw" else unpack[encoding](stream)).read(expected + 1)
        if len(data) != expected:
            there = len(data) if len(data) < expected else "more"
            raise Unusable(f"{expected} bytes are announced, {there} are there")
        return np.frombuffer(data, dtype).reshape(shape, order="F")

    return Volume(shape, affine, read)


def _dicom(folder: Path) -> Volume:
    files = sorted(file for file in folder.iterdir() if file.is_file() and is_dicom(file))
    if not files:
        raise Unusable("there is no DICOM file in this folder")
    check_memory([sum(file.stat().st_size for file in files)], 1)
    for file in files:
        syntax = pydicom.filereader.read_file_meta_info(file).get("TransferSyntaxUID")
        if syntax == DeflatedExplicitVRLittleEndian:  # unpacked as a whole, however much that is
            raise Unusable(f"{_plain(file)} is a deflated DICOM file; export the series without that")
    heads = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    if len({head.get("SeriesInstanceUID") for head in heads}) > 1:
        raise Unusable("its DICOM files are of several series; put each series into a folder of its own")
    for file, head in zip(files, heads, strict=True):
        missing = [name for name in SLICE_TAGS if head.get(name) in (None, "")]
        if missing:
            raise Unusable(f"{_plain(file)} lacks {' and '.join(missing)}, so it is no slice of a volume")
        if int(head.get("SamplesPerPixel") or 1) != 1 or int(head.get("NumberOfFrames") or 1) != 1:
            raise Unusable(f"{_plain(file)} holds colour or several frames; one grey slice a file is needed")
    if len({(head.Rows, head.Columns, *map(float, head.PixelSpacing)) for head in heads}) > 1:
        raise Unusable("its slices differ in size; put those of one series into the folder")
    shape = _spatial(
        [int(heads[0].Columns), int(heads[0].Rows), len(files)], int(heads[0].get("BitsAllocated", 16)) // 8
    )
    _check_slices(heads)

    def read() -> NDArray[Any]:
        reader = PydicomReader()
        # Given one by one: by itself it opens whatever lies in the folder, and takes [ ] in its name for a pattern.
        reader.filenames, reader.has_series = [[str(file) for file in files]], True  # type: ignore[list-item]
        array: NDArray[Any] = reader.get_data([pydicom.dcmread(file) for file in files])[0]
        return array

    return Volume(shape, _checked_affine(_affine(heads)), read)


def _affine(heads: Sequence[Any]) -> NDArray[np.float64]:
    """Voxel (column, row, slice by InstanceNumber) to RAS millimetres, as MONAI's reader has it, without any voxels."""
    first, *_, last = sorted(heads, key=lambda head: int(head.InstanceNumber))
    down, along = (float(x) for x in first.PixelSpacing)
    orientation = np.array([float(x) for x in first.ImageOrientationPatient])
    begin, end = (np.array([float(x) for x in head.ImagePositionPatient]) for head in (first, last))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = orientation[:3] * along, orientation[3:] * down
    affine[:3, 2], affine[:3, 3] = (end - begin) / (len(heads) - 1), begin
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _check_slices(heads: Sequence[Any]) -> None:
    """One stack: parallel slices whose numbers follow their places, at even distances."""
    orientations = np.array([[float(x) for x in head.ImageOrientationPatient] for head in heads])
    positions = np.array([[float(x) for x in head.ImagePositionPatient] for head in heads])
    if orientations.shape[1:] != (6,) or positions.shape[1:] != (3,) or not np.isfinite(positions).all():
        raise Unusable("the place of its slices is not understood")
    if np.abs(orientations - orientations[0]).max() > 1e-2:
        raise Unusable("its slices are not parallel; put those of one stack into the folder")
    normal = np.cross(orientations[0, :3], orientations[0, 3:])
    order = np.argsort([int(head.InstanceNumber) for head in heads], kind="stable")
    places = positions[order]
    steps = np.diff(places @ normal)
    if np.abs(steps).min() < 1e-3 or (np.sign(steps) != np.sign(steps[0])).any():
        raise Unusable("its slices do not follow one another; put those of one stack into the folder")
    # The volume's affine is the line from the first slice to the last: small differences that add up lead away from it.
    apart = places - np.linspace(places[0], places[-1], len(places))
    down, along = (float(x) for x in heads[0].PixelSpacing)
    axes = np.stack([orientations[0, :3] / along, orientations[0, 3:] / down, normal / np.abs(steps).mean()])
    if np.abs(apart @ axes.T).max() > UNEVEN:
        raise Unusable("its slices are not in a row at even distances; is one missing?")


def _spatial(shape: Sequence[int], itemsize: int) -> tuple[int, int, int]:
    """The first three axes of an announced shape, where the others are of length 1 and there is memory for it."""
    sizes = tuple(int(n) for n in shape)
    if len(sizes) < 3 or min(sizes[:3]) < 2 or any(n != 1 for n in sizes[3:]):
        raise Unusable(f"{times(sizes)} voxels; a single-channel 3-D volume is needed")
    # As it lies in the file, as nibabel scales it (float64), as float32, and two copies on the way through transforms.
    check_memory(sizes, itemsize + 8 + 3 * 4)
    return sizes[0], sizes[1], sizes[2]


def _checked_affine(affine: Any) -> NDArray[np.float64]:
    given = np.asarray(affine, dtype=np.float64)
    if given.shape != (4, 4) or not np.isfinite(given).all() or not 1e-9 < abs(np.linalg.det(given[:3, :3])) < 1e9:
        raise Unusable("its affine has no volume, so the size of a voxel is unknown")
    if np.linalg.cond(given[:3, :3]) > 1e5:
        raise Unusable("two axes of its affine are parallel, so the size of a voxel is unknown")
    return given


def short(error: Exception) -> str:
    """Kind and first line of an error, one printable line."""
    line = (str(error).strip().splitlines() or [""])[0][:90]
    text = "".join(c if c.isprintable() else "?" for c in line)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _plain(path: Path) -> str:
    return "".join(c if c.isprintable() else "?" for c in path.name)[:60]
