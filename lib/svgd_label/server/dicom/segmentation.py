"""A label map as DICOM SEG on the frames of its series, and a SEG as a label map."""

import colorsys
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import SegmentationStorage
from pydicom.valuerep import DA, DS, TM
from skimage.color import rgb2lab

import svgd_label
from svgd_label.errors import UserError

# It tells of each step, and of what it copies.
logging.getLogger("highdicom").setLevel(logging.WARNING)

MAKER = "SVGD Label"
_AWRY = 0.4  # of a voxel; slices may lie unevenly by half of that
# Type 2 attributes, which a series may lack and a SEG must repeat, if only as empty.
_OF_THE_STUDY = (
    ("PatientID", ""),
    ("PatientName", ""),
    ("PatientBirthDate", None),
    ("PatientSex", ""),
    ("AccessionNumber", ""),
    ("StudyID", ""),
    ("StudyDate", None),
    ("StudyTime", None),
)
_ANATOMY = Code("123037004", "SCT", "Anatomical Structure")
_ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
_ABNORMAL_WORDS = re.compile(r"tumou?r|lesion|cancer|carcinoma|sarcoma|metasta|cyst|oedema|edema|necro|nodule", re.I)
_ARTIFICIAL_INTELLIGENCE = Code("123109", "DCM", "Artificial Intelligence")


class SegmentationError(UserError):
    """A label that cannot become a SEG, or a SEG that cannot become a label; one sentence."""


@dataclass(frozen=True)
class Origin:
    """What a SEG says of the label that it holds.

    Attributes:
        task: name of the task.
        number: version of the label; None for one that was put into the folder by hand.
        model_version: the committee whose proposal was corrected; None where there was none.
        replaces: whether an earlier SEG of ours shows the same series.
    """

    task: str
    number: int | None
    model_version: int | None
    replaces: bool


def make_segmentation(
    series: Path,
    labels: NDArray[np.uint8],
    affine: NDArray[np.float64],
    structures: Sequence[str],
    *,
    series_uid: str,
    instance_uid: str,
    origin: Origin,
) -> Dataset:
    """A binary SEG of a label map on the frames of its series, each frame found by its place in the patient.

    Segment number, name, code and colour follow the label's value, also where a value does not occur.

    Args:
        series: folder with the DICOM files of the series, in any order.
        labels: (X, Y, Z), 0 background, i the i-th structure; at least one voxel is labelled.
        affine: (4, 4), voxel to RAS millimetres.
        structures: names of the values 1, 2, ...
        series_uid: of the new series.
        instance_uid: of the new instance.
        origin: what is said of the label.

    Raises:
        SegmentationError: the frames of the series are not the slices of the label map, or what a SEG needs is missing.
    """
    heads = [pydicom.dcmread(file, stop_before_pixels=True) for file in sorted(series.glob("*.dcm"))]
    slices = [_slice(_plane_of_file(head), labels.shape, affine) for head in heads]
    if sorted(slices) != list(range(labels.shape[2])):
        raise SegmentationError(
            f"the series has frames at {len(set(slices))} places, its label {labels.shape[2]} slices; is one missing?"
        )
    frames = np.stack([labels[:, :, k].T for k in slices])
    if "FrameOfReferenceUID" not in heads[0]:
        raise SegmentationError("the series has no FrameOfReferenceUID, so no SEG can refer to its places")
    for head in heads:
        _complete(head, float(np.linalg.norm(affine[:3, 2])))
    try:
        made = highdicom.seg.Segmentation(
            source_images=heads,
            pixel_array=frames,
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=[_describe(name, i, origin) for i, name in enumerate(structures, start=1)],
            series_instance_uid=series_uid,
            series_number=9000 + (origin.number or 0) % 1000,
            sop_instance_uid=instance_uid,
            instance_number=1,
            manufacturer=MAKER,
            manufacturer_model_name=MAKER,
            software_versions=svgd_label.__version__,
            device_serial_number="1",
            content_description=_description(origin),
            content_label="LABEL",
            series_description=f"{MAKER} {origin.task} {_version(origin)}"[:64],
        )
        made.SpecificCharacterSet = "ISO_IR 192"  # UTF-8: names of patients and structures in any script
        return made
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise SegmentationError(f"no SEG can be made of the label ({type(error).__name__}: {error})") from error


def _complete(head: Dataset, step: float) -> None:
    """What a SEG repeats of its series: empty where that has none, or none that DICOM allows, as after some exports."""
    for name, empty in _OF_THE_STUDY:
        try:
            value = head.get(name)
            if value is not None and name.endswith("Date"):
                DA(value)
            elif value is not None and name.endswith("Time"):
                TM(value)
            elif name == "PatientSex" and value not in (None, "", "M", "F", "O"):
                raise ValueError(value)
        except ValueError:
            value = None
        if value is None:
            setattr(head, name, empty)
    if not head.get("SliceThickness"):
        head.SliceThickness = DS(step, auto_format=True)


HEAD = (
    "ManufacturerModelName",
    "SeriesDescription",
    "ContentDate",
    "ContentTime",
    "TimezoneOffsetFromUTC",
    "ReferencedSeriesSequence",
    "SegmentSequence",
)
"""What the questions below and a look at its age need of a SEG."""


def is_ours(instance: Dataset) -> bool:
    """Whether a SEG was made by this app."""
    return str(instance.get("ManufacturerModelName", "")) == MAKER


def is_automatic(instance: Dataset) -> bool:
    """Whether a SEG says of all its segments that no person drew or corrected them.

    MONAI Label's own datastore says so of every label that an annotator saves.
    """
    segments = instance.get("SegmentSequence") or []
    return bool(segments) and all(
        segment.get("SegmentAlgorithmType") == "AUTOMATIC" and segment.get("SegmentAlgorithmName") != "MONAILABEL"
        for segment in segments
    )


def is_of_task(instance: Dataset, task: str) -> bool:
    """Whether a SEG of ours holds a label of this task: others may share its structures' names, and lack some."""
    return str(instance.get("SeriesDescription", "")).startswith(f"{MAKER} {task} "[:64])


def referenced_series(segmentation: Dataset) -> str | None:
    """The series that a SEG was drawn on."""
    items = segmentation.get("ReferencedSeriesSequence") or []
    return str(items[0].get("SeriesInstanceUID", "")) or None if items else None


def read_segmentation(
    segmentation: Dataset, shape: tuple[int, int, int], affine: NDArray[np.float64]
) -> tuple[NDArray[np.uint8], list[tuple[str, int]]]:
    """A binary SEG as label map (X, Y, Z) of its segment numbers, with names and numbers of all its segments.

    Raises:
        SegmentationError: its frames are not on this grid, its segments overlap, or it is no binary SEG.
    """
    if segmentation.get("SOPClassUID") != SegmentationStorage or segmentation.get("SegmentationType") != "BINARY":
        raise SegmentationError("it is no binary SEG")
    labels = np.zeros(shape, np.uint8)
    shared = segmentation.get("SharedFunctionalGroupsSequence", [Dataset()])[0]
    masks = np.atleast_3d(segmentation.pixel_array).reshape(-1, segmentation.Rows, segmentation.Columns)
    for mask, own in zip(masks, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        k = _slice(_plane_of_frame(own, shared, mask.shape), shape, affine)
        number = int(own.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        if not 0 < number < 256:
            raise SegmentationError("it has more than 255 segments")
        plane, drawn = labels[:, :, k], mask.T > 0
        if (plane[drawn] != 0).any():
            raise SegmentationError("its segments overlap")
        plane[drawn] = number
    return labels, [(str(s.SegmentLabel), int(s.SegmentNumber)) for s in segmentation.SegmentSequence]


@dataclass(frozen=True)
class _Plane:
    """A frame in the patient: LPS millimetres of its first voxel, and of a step along a row and down a column."""

    corner: NDArray[np.float64]
    along: NDArray[np.float64]
    down: NDArray[np.float64]
    size: tuple[int, int]  # columns, rows


def _plane(position: Any, orientation: Any, spacing: Any, rows: int, columns: int) -> _Plane:
    directions = np.array(orientation, dtype=np.float64).reshape(2, 3)
    down, along = (float(x) for x in spacing)  # DICOM gives the distance of rows first
    return _Plane(np.array(position, np.float64), directions[0] * along, directions[1] * down, (columns, rows))


def _plane_of_file(head: Dataset) -> _Plane:
    return _plane(
        head.ImagePositionPatient, head.ImageOrientationPatient, head.PixelSpacing, int(head.Rows), int(head.Columns)
    )


def _plane_of_frame(own: Dataset, shared: Dataset, size: tuple[int, ...]) -> _Plane:
    def group(name: str) -> Dataset:
        found = own.get(name) or shared.get(name)
        if not found:
            raise SegmentationError(f"it lacks {name}, so the place of its frames is unknown")
        item: Dataset = found[0]
        return item

    return _plane(
        group("PlanePositionSequence").ImagePositionPatient,
        group("PlaneOrientationSequence").ImageOrientationPatient,
        group("PixelMeasuresSequence").PixelSpacing,
        size[0],
        size[1],
    )


def _slice(plane: _Plane, shape: Sequence[int], affine: NDArray[np.float64]) -> int:
    """The slice of the label map that lies where the frame lies, voxel on voxel; or SegmentationError."""
    columns, rows = plane.size
    corners = plane.corner + np.stack([np.zeros(3), (columns - 1) * plane.along, (rows - 1) * plane.down])
    ras = np.c_[corners * [-1, -1, 1], np.ones(3)]
    voxels = (ras @ np.linalg.inv(affine).T)[:, :3]
    k = round(float(voxels[0, 2]))
    expected = [[0, 0, k], [columns - 1, 0, k], [0, rows - 1, k]]
    if (columns, rows) != tuple(shape[:2]) or not 0 <= k < shape[2] or np.abs(voxels - expected).max() > _AWRY:
        raise SegmentationError("its frames do not lie on the slices of the label's grid")
    return k


def _describe(name: str, value: int, origin: Origin) -> SegmentDescription:
    code = _ABNORMAL if _ABNORMAL_WORDS.search(name) else _ANATOMY
    algorithm = None
    if origin.model_version is not None:
        algorithm = highdicom.AlgorithmIdentificationSequence(
            name=f"{MAKER} {origin.task}",
            family=_ARTIFICIAL_INTELLIGENCE,
            version=f"model version {origin.model_version}",
        )
    described = SegmentDescription(
        segment_number=value,
        segment_label=name[:64],
        segmented_property_category=code,
        segmented_property_type=code,
        algorithm_type=SegmentAlgorithmTypeValues.SEMIAUTOMATIC if algorithm else SegmentAlgorithmTypeValues.MANUAL,
        algorithm_identification=algorithm,
    )
    described.RecommendedDisplayCIELabValue = list(colour(value))
    return described


def colour(value: int) -> tuple[int, int, int]:
    """A label value's colour as DICOM writes CIELab (16 bits each); neighbouring values differ by the golden angle."""
    rgb = colorsys.hsv_to_rgb((value - 1) * 0.61803398875 % 1.0, 0.75, 0.9)
    red, green, blue = CIELabColor(*rgb2lab([[rgb]])[0, 0]).value  # white point D65, as viewers take it
    return red, green, blue


def _version(origin: Origin) -> str:
    return "label" if origin.number is None else f"version {origin.number}"


def _description(origin: Origin) -> str:
    """LO, so at most 64 characters."""
    source = "drawn by hand" if origin.model_version is None else f"corrected from model version {origin.model_version}"
    return f"{_version(origin).capitalize()}, {source}{', replaces earlier' if origin.replaces else ''}"[:64]
