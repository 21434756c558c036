"""The sample study written as DICOM series, for servers and pictures that may be shown to anybody."""

from pathlib import Path

import nibabel
import numpy as np
from tests.dicom.series import Geometry, make_series
from tests.e2e.server import SAMPLE


def phantom_series(folder: Path, name: str, *, downwards: bool = False, study: str | None = None) -> str:
    """One phantom as an axial MR series with all voxels where they are; returns the SeriesInstanceUID.

    ``downwards`` numbers its slices from head to feet, as most scanners do.
    """
    image = nibabel.load(SAMPLE / f"{name}.nii.gz")
    assert isinstance(image, nibabel.Nifti1Image)
    # From RAS to LPS: both first axes run the other way.
    voxels = np.asarray(image.dataobj)[::-1, ::-1]
    first = image.affine @ [voxels.shape[0] - 1, voxels.shape[1] - 1, 0, 1]
    x, y, z = -first[0], -first[1], first[2]
    step = 1.0
    if downwards:
        voxels, z, step = voxels[:, :, ::-1], z + voxels.shape[2] - 1, -1.0
    columns, rows, slices = voxels.shape
    geometry = Geometry((1, 0, 0), (0, 1, 0), (0, 0, step), (1.0, 1.0), (x, y, z), (columns, rows, slices))
    return make_series(folder, geometry, voxels=voxels, study=study)
