"""Reading an image or a label file into memory, and refusing in one sentence what cannot be used."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from svgd_label.errors import UserError
from svgd_label.images.files import NoMemory, Unusable, open_volume, short

# pydicom and nibabel describe at length what the sentences below say shortly.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)


class ImageError(UserError):
    """An image that cannot be used; the sentence names the file and says why.

    ``passing`` says that it may be another time: the file is away, or memory is short, for the moment.
    """

    def __init__(self, sentence: str, *, passing: bool = False) -> None:
        super().__init__(sentence)
        self.passing = passing


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
    volume = _read(path)
    values = volume.as_tensor()
    if not torch.isfinite(values).all():
        raise ImageError(f"{_name(path)}: holds NaN or infinite values")
    if bool((values == values.flatten()[0]).all()):
        raise ImageError(f"{_name(path)}: every voxel has the same value")
    return volume


def geometry(path: str | Path) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Shape and affine (voxel to RAS millimetres) of an image, without reading a file's voxels.

    Raises:
        ImageError: as :func:`load_volume`, as far as the header shows it.
    """
    path = Path(path)
    with _sentences(path):
        volume = open_volume(path)
        return volume.shape, volume.affine


def as_viewed(affine: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The affine (4, 4) of the same voxels in the order in which OHIF lays out a series.

    Its slices follow each other along the cross product of a row and a column, whichever way they are numbered; many
    series are numbered from head to feet, the other way. OHIF takes the voxels of a segmentation as they come, and its
    page sends them so, both without looking at a header. Where this affine is not ``affine``, the last axis (of
    ``shape``) is turned round.
    """
    if np.linalg.det(affine[:3, :3]) > 0:
        return affine
    turned = affine.copy()
    turned[:3, 3] += (shape[2] - 1) * affine[:3, 2]
    turned[:3, 2] *= -1
    return turned


def _read(path: Path) -> MetaTensor:
    """(1, X, Y, Z) float32 with its affine in RAS."""
    with _sentences(path):
        volume = open_volume(path)
        array = np.ascontiguousarray(volume.read(), dtype=np.float32)
        if array.shape != volume.shape:
            raise Unusable("its voxels are not as many as it announces")
        tensor = torch.from_numpy(array).unsqueeze(0)
        return MetaTensor(tensor, affine=torch.from_numpy(volume.affine), meta={"filename_or_obj": str(path)})


@contextmanager
def _sentences(path: Path) -> Iterator[None]:
    """Whatever reading a file raises, as one sentence that names it."""
    if path == Path():  # what the empty path of an image that has gone becomes, and not the folder we are in
        raise ImageError("an image has gone meanwhile", passing=True)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    except FileNotFoundError as error:
        raise ImageError(f"{_name(path)}: there is no such file", passing=True) from error
    except Unusable as error:
        raise ImageError(f"{_name(path)}: {error}", passing=isinstance(error, NoMemory)) from error
    except Exception as error:  # readers raise anything, from zlib.error to IndexError
        # A share that is away, a file that may not be read. What gzip and bz2 call an OSError has no number.
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
            raise ImageError(f"{_name(path)}: cannot be read at present ({short(error)})", passing=True) from error
        raise ImageError(f"{_name(path)}: cannot be read ({short(error)}); is the file complete?") from error


def _name(path: Path) -> str:
    """A file's name as it can stand in a line of a log."""
    name = "".join(c if c.isprintable() else "?" for c in path.name)
    return name if len(name) <= 200 else f"{name[:197]}..."
