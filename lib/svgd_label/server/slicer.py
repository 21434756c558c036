"""What 3D Slicer needs of an image: a single file, and a sign by which it knows that its own copy is out of date."""

import functools
import gzip
import threading
from hashlib import sha256
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from monailabel.utils.others.generic import file_checksum

from svgd_label.images import ImageError, load_volume
from svgd_label.pool.files import fingerprint

_CHECKSUMS = 10_000
_INT16 = np.iinfo(np.int16)
_one_at_a_time = threading.Lock()
"""A CT and its copies take a gigabyte."""
PLACES = 8
"""So many wait for it: each holds one of the 40 threads that saves are answered from, too."""
_places = threading.Semaphore(PLACES)


def described(image: str, path: Path) -> dict[str, Any]:
    """What the answer to *Next Sample* says beside the image's info, for a Slicer that does not see the server's disk.

    Slicer keeps whatever it has downloaded under the file's name, for all studies, and takes that instead unless the
    checksum differs. A folder of DICOM files is one file to it, whose name changes with the folder's content.
    """
    if path.is_dir():
        content = sha256(f"{path}:{fingerprint(path)}".encode()).hexdigest()[:8]
        return {"name": f"{image}.{content}.nii.gz", "path": None}
    return {"checksum": _checksum(path, fingerprint(path))}


def as_nifti(folder: Path) -> bytes:
    """A folder of DICOM files as a compressed NIfTI file, in the same voxel order.

    Raises:
        svgd_label.images.ImageError: it cannot be used, or too many wait.
    """
    if not _places.acquire(blocking=False):
        raise ImageError(f"{PLACES} images are being read for 3D Slicer: try again in a moment.", passing=True)
    try:
        return _as_nifti(folder)
    finally:
        _places.release()


def _as_nifti(folder: Path) -> bytes:
    with _one_at_a_time:
        volume = load_volume(folder)
        values = volume.numpy()[0]
        if _INT16.min <= values.min() and values.max() <= _INT16.max and (values == np.rint(values)).all():
            values = values.astype(np.int16)  # as of every CT and MR: half of the bytes
        file = nibabel.Nifti1Image(values, volume.affine.numpy())
        file.set_qform(file.affine, code="scanner")
        file.set_sform(file.affine, code="scanner")
        return gzip.compress(file.to_bytes(), compresslevel=1, mtime=0)


@functools.lru_cache(maxsize=_CHECKSUMS)
def _checksum(path: Path, _fingerprint: str) -> str:
    checksum: str = file_checksum(path)
    return checksum
