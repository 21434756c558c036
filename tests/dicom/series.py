"""DICOM series of any geometry, made for the tests, and where their pixels lie in the patient."""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

PATIENT = "DOE^Jane"
PATIENT_ID = "ID-4711"


def unit(vector: Any) -> NDArray[np.float64]:
    array = np.asarray(vector, np.float64)
    return array / np.linalg.norm(array)


@dataclass(frozen=True)
class Geometry:
    """Directions (LPS) along a row, down a column and from slice to slice, with distances in mm."""

    along: tuple[float, float, float]
    down: tuple[float, float, float]
    step: tuple[float, float, float]
    spacing: tuple[float, float] = (1.25, 0.75)  # of rows, of columns
    origin: tuple[float, float, float] = (-31.5, 12.25, 7.75)
    shape: tuple[int, int, int] = field(default=(19, 23, 11))  # columns, rows, slices


_a, _b = np.cos(np.radians(25)), np.sin(np.radians(25))
_oblique = (unit([0.9, 0.3, -0.2]), unit([-0.25, 0.95, 0.0]))
_down = unit(_oblique[1] - (_oblique[1] @ _oblique[0]) * _oblique[0])

AXIAL = Geometry((1, 0, 0), (0, 1, 0), (0, 0, 2.5))
FEET_FIRST = Geometry((1, 0, 0), (0, 1, 0), (0, 0, -2.5))
SAGITTAL = Geometry((0, 1, 0), (0, 0, -1), (1.5, 0, 0))
OBLIQUE = Geometry(tuple(_oblique[0]), tuple(_down), tuple(2 * np.cross(_oblique[0], _down)))
# The gantry leans by 25 degrees: slices lean, the table moves straight on, so slices are shifted against each other.
TILTED = Geometry((1, 0, 0), (0, _a, _b), (0, 0, 3.0))
GEOMETRIES = {"axial": AXIAL, "feet first": FEET_FIRST, "sagittal": SAGITTAL, "oblique": OBLIQUE, "tilted": TILTED}


def make_series(
    folder: Path,
    geometry: Geometry,
    *,
    seed: int = 0,
    without: int | None = None,
    voxels: NDArray[np.int16] | None = None,
    study: str | None = None,
) -> str:
    """Writes one file a slice, names and order at random; returns the SeriesInstanceUID.

    ``voxels`` (columns, rows, slices) are noise where they are not given; ``study`` is one of its own.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    columns, rows, slices = geometry.shape
    study, series, frame = study or generate_uid(), generate_uid(), generate_uid()
    names = list(range(slices))
    random.Random(seed).shuffle(names)
    for k in range(slices):
        if k == without:
            continue
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file = folder / f"{names[k]:02}.dcm"
        image = FileDataset(str(file), {}, file_meta=meta, preamble=b"\0" * 128)
        image.is_little_endian, image.is_implicit_VR = True, False
        image.SOPClassUID, image.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame
        image.Modality, image.StudyDate, image.StudyTime = "MR", "20240229", "101112"
        image.PatientName, image.PatientID, image.StudyID = PATIENT, PATIENT_ID, "1"
        image.SeriesNumber, image.InstanceNumber = 1, k + 1
        image.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
        image.Rows, image.Columns, image.SamplesPerPixel = rows, columns, 1
        image.PhotometricInterpretation = "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
        image.PixelSpacing = [f"{x:.6f}" for x in geometry.spacing]
        image.SliceThickness = "2"
        image.ImageOrientationPatient = [f"{x:.10f}" for x in (*geometry.along, *geometry.down)]
        position = np.array(geometry.origin) + k * np.array(geometry.step)
        image.ImagePositionPatient = [f"{x:.8f}" for x in position]
        pixels = rng.integers(0, 1000, (rows, columns)) if voxels is None else voxels[:, :, k].T
        image.PixelData = pixels.astype("<u2").tobytes()
        image.save_as(file, write_like_original=False)
    return str(series)


def structure(ras: NDArray[np.float64], centre: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Label of points (..., 3) in RAS mm: two structures without any symmetry, 2 and, inside and beside it, 3."""
    x, y, z = np.moveaxis(ras - centre, -1, 0)
    big = (x / 6.3) ** 2 + (y / 9.1) ** 2 + ((z - 0.2 * x) / 7.7) ** 2 < 1
    small = ((x - 3.1) / 3.3) ** 2 + ((y + 4.2) / 4.7) ** 2 + ((z - 2.3) / 5.9) ** 2 < 1
    return np.where(small, 3, np.where(big, 2, 0)).astype(np.uint8)


def centre_of(geometry: Geometry) -> NDArray[np.float64]:
    """RAS mm of a point near the middle that is no voxel's."""
    columns, rows, slices = geometry.shape
    lps = np.array(geometry.origin) + (slices * 0.5 + 0.013) * np.array(geometry.step)
    lps = lps + columns * 0.47 * geometry.spacing[1] * np.array(geometry.along)
    lps = lps + rows * 0.52 * geometry.spacing[0] * np.array(geometry.down)
    return lps * [-1, -1, 1]


def labels_on_grid(shape: tuple[int, ...], affine: NDArray[np.float64], geometry: Geometry) -> NDArray[np.uint8]:
    """The structures on an image's grid, by the affine of the image."""
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return structure(voxels @ affine[:3, :3].T + affine[:3, 3], centre_of(geometry))


def labels_on_frame(head: pydicom.Dataset, geometry: Geometry) -> NDArray[np.uint8]:
    """The structures on one file's pixels (rows, columns), by DICOM's own formula (PS3.3, C.7.6.2.1.1)."""
    row, column = np.meshgrid(np.arange(head.Rows), np.arange(head.Columns), indexing="ij")
    orientation = np.array(head.ImageOrientationPatient, np.float64)
    lps = (
        np.array(head.ImagePositionPatient, np.float64)
        + column[..., None] * float(head.PixelSpacing[1]) * orientation[:3]
        + row[..., None] * float(head.PixelSpacing[0]) * orientation[3:]
    )
    return structure(lps * [-1, -1, 1], centre_of(geometry))
