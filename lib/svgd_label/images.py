"""Reading a volume from NIfTI, NRRD or a folder of DICOM, and refusing in one sentence what cannot be used."""

import logging
import os
import warnings
from pathlib import Path

import nibabel
import numpy as np
import psutil
import torch
from monai.data import MetaTensor
from monai.data.image_reader import ImageReader, NibabelReader, NrrdReader, PydicomReader
from numpy.typing import NDArray

from svgd_label.errors import UserError

EXTENSIONS = (".nii.gz", ".nii", ".nrrd")

# pydicom and nibabel describe at length what the sentence below says shortly.
logging.getLogger("nibabel.global").setLevel(logging.ERROR)


class ImageError(UserError):
    """An image that cannot be used; the sentence names the file and says why."""


def is_volume(path: Path) -> bool:
    """Whether a path looks like an image by its name: a known extension, or a folder."""
    return path.is_dir() or path.name.lower().endswith(EXTENSIONS)


def load_volume(path: str | Path) -> MetaTensor:
    """Reads one image.

    Args:
        path: a .nii, .nii.gz or .nrrd file, or a folder that holds one DICOM series.

    Returns:
        (1, X, Y, Z) float32 with its affine, voxel to RAS millimetres.

    Raises:
        ImageError: the file is missing, empty, truncated or unreadable, is not a single-channel 3-D volume, holds
            NaN or infinite values, is constant, or would not fit into memory.
    """
    path = Path(path)
    if not path.exists():
        raise ImageError(f"{path.name}: there is no such file")
    if path.is_file() and path.stat().st_size == 0:
        raise ImageError(f"{path.name}: the file is empty")
    if not is_volume(path):
        raise ImageError(f"{path.name}: not a known image format; use {', '.join(EXTENSIONS)} or a folder of DICOM")
    _check_header(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            volume = _read(path)
    except Exception as error:  # readers raise anything, from zlib.error to IndexError
        raise ImageError(f"{path.name}: cannot be read ({_short(error)}); is the file complete?") from error
    return _checked(path, volume)


def load_label(path: str | Path) -> MetaTensor:
    """Reads a stored label as it stands, (1, X, Y, Z) float32: an empty one, which is constant, is a label too.

    Raises:
        ImageError: the file cannot be read.
    """
    try:
        volume = _read(Path(path))
    except Exception as error:
        raise ImageError(f"{Path(path).name}: the label cannot be read ({_short(error)})") from error
    return MetaTensor(volume.as_tensor().unsqueeze(0), affine=volume.affine, meta={"filename_or_obj": str(path)})


def geometry(path: str | Path) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Shape and affine (voxel to RAS millimetres) of an image, without reading a NIfTI file's voxels.

    Raises:
        ImageError: as :func:`load_volume`, as far as the header shows it.
    """
    path = Path(path)
    if path.is_file() and path.name.lower().endswith((".nii", ".nii.gz")):
        shape, affine = _check_header(path), _nifti(path).affine
        return (shape[0], shape[1], shape[2]), np.asarray(affine, dtype=np.float64)
    volume = load_volume(path)
    _, x, y, z = volume.shape
    return (x, y, z), np.asarray(volume.affine, dtype=np.float64)


def _read(path: Path) -> MetaTensor:
    """(X, Y, Z) float32 with its affine in RAS, unchecked."""
    reader: ImageReader
    if path.is_dir():
        reader = PydicomReader()
    else:
        reader = NrrdReader() if path.name.lower().endswith(".nrrd") else NibabelReader()
    array, meta = reader.get_data(reader.read(str(path)))  # type: ignore[arg-type]
    return MetaTensor(np.ascontiguousarray(array, dtype=np.float32), affine=torch.as_tensor(meta["affine"]))


def _nifti(path: Path) -> nibabel.Nifti1Image:
    try:
        image = nibabel.load(path)
    except Exception as error:
        raise ImageError(f"{path.name}: no NIfTI header can be read ({_short(error)})") from error
    if not isinstance(image, nibabel.Nifti1Image):
        raise ImageError(f"{path.name}: not a NIfTI file, whatever its name says")
    return image


def _check_header(path: Path) -> tuple[int, ...]:
    """What can be refused before a voxel is read; returns the spatial shape (of NIfTI files, else an empty one)."""
    if path.is_dir() or not path.name.lower().endswith((".nii", ".nii.gz")):
        return ()
    image = _nifti(path)
    shape = tuple(int(n) for n in image.shape)
    dtype = image.get_data_dtype()
    if dtype.fields is not None or np.issubdtype(dtype, np.complexfloating):
        raise ImageError(f"{path.name}: holds colour or complex values; only single grey values can be used")
    _check_shape(path, shape[:3] if shape[3:] and all(n == 1 for n in shape[3:]) else shape)
    affine = image.affine
    if affine is None or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ImageError(f"{path.name}: its affine has no volume, so the size of a voxel is unknown")
    needed = int(np.prod(shape, dtype=np.float64)) * 4 * 3  # float32, and two copies on the way through transforms
    if needed > psutil.virtual_memory().available:
        raise ImageError(f"{path.name}: {' x '.join(map(str, shape))} voxels do not fit into this machine's memory")
    if path.name.lower().endswith(".nii"):
        expected = int(image.header["vox_offset"]) + int(np.prod(shape, dtype=np.float64)) * dtype.itemsize
        if os.path.getsize(path) < expected:
            raise ImageError(f"{path.name}: cut off; {expected} bytes are announced, {os.path.getsize(path)} are there")
    return shape


def _check_shape(path: Path, shape: tuple[int, ...]) -> None:
    if len(shape) != 3 or min(shape) < 2:
        raise ImageError(
            f"{path.name}: {' x '.join(map(str, shape)) or 'no'} voxels; a single-channel 3-D volume is needed"
        )


def _checked(path: Path, volume: MetaTensor) -> MetaTensor:
    values = volume.as_tensor()
    if values.ndim > 3 and all(n == 1 for n in values.shape[3:]):
        values = values.reshape(values.shape[:3])
    _check_shape(path, tuple(values.shape))
    if not torch.isfinite(values).all():
        raise ImageError(f"{path.name}: holds NaN or infinite values")
    if bool((values == values.flatten()[0]).all()):
        raise ImageError(f"{path.name}: every voxel has the same value")
    return MetaTensor(values.unsqueeze(0), affine=volume.affine, meta={"filename_or_obj": str(path)})


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__
