"""A label map becomes a valid SEG on the right pixels, whatever way the series lies, and comes back the same."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid
from skimage.color import lab2rgb
from tests.dicom.series import AXIAL, GEOMETRIES, Geometry, labels_on_frame, labels_on_grid, make_series

from svgd_label.images import ImageError, geometry, load_volume
from svgd_label.server.dicom.segmentation import (
    Origin,
    SegmentationError,
    colour,
    is_automatic,
    is_ours,
    make_segmentation,
    read_segmentation,
    referenced_series,
)

STRUCTURES = ("never drawn", "hippocampus", "tumour")
ORIGIN = Origin("hips", 4, 7, True)


def segmentation(folder: Path, grid: Geometry, origin: Origin = ORIGIN) -> pydicom.Dataset:
    shape, affine = geometry(folder)
    labels = labels_on_grid(shape, affine, grid)
    assert {*np.unique(labels)} == {0, 2, 3}
    return make_segmentation(
        folder, labels, affine, STRUCTURES, series_uid=generate_uid(), instance_uid=generate_uid(), origin=origin
    )


@pytest.mark.parametrize("name", GEOMETRIES)
def test_each_pixel_of_each_frame_shows_what_lies_there_in_the_patient(name: str, tmp_path: Path) -> None:
    grid, folder, file = GEOMETRIES[name], tmp_path / "series", tmp_path / "seg.dcm"
    make_series(folder, grid)
    segmentation(folder, grid).save_as(file)
    read = highdicom.seg.segread(str(file))
    for source in sorted(folder.iterdir()):
        head = pydicom.dcmread(source, stop_before_pixels=True)
        expected = labels_on_frame(head, grid)
        found = read.get_pixels_by_source_instance(
            [head.SOPInstanceUID], combine_segments=True, assert_missing_frames_are_empty=True
        )[0]
        np.testing.assert_array_equal(found, expected, err_msg=source.name)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_it_is_read_back_as_the_same_label_map(name: str, tmp_path: Path) -> None:
    grid, folder = GEOMETRIES[name], tmp_path / "series"
    make_series(folder, grid)
    shape, affine = geometry(folder)
    labels, segments = read_segmentation(segmentation(folder, grid), shape, affine)
    np.testing.assert_array_equal(labels, labels_on_grid(shape, affine, grid))
    assert segments == [("never drawn", 1), ("hippocampus", 2), ("tumour", 3)]


@pytest.mark.parametrize("origin", [ORIGIN, Origin("hips", None, None, False)])
def test_dciodvfy_finds_no_error(origin: Origin, tmp_path: Path) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed: apt-get install dicom3tools")
    make_series(tmp_path / "series", AXIAL)
    segmentation(tmp_path / "series", AXIAL, origin).save_as(tmp_path / "seg.dcm")
    checked = subprocess.run(["dciodvfy", "-new", tmp_path / "seg.dcm"], capture_output=True, text=True)
    assert "Error" not in checked.stderr, checked.stderr
    assert checked.returncode == 0


def test_names_codes_and_colours_go_by_value_and_the_origin_is_told(tmp_path: Path) -> None:
    series = make_series(tmp_path / "series", AXIAL)
    made = segmentation(tmp_path / "series", AXIAL)
    assert [(s.SegmentNumber, s.SegmentLabel) for s in made.SegmentSequence] == [
        (1, "never drawn"),
        (2, "hippocampus"),
        (3, "tumour"),
    ]
    codes = [s.SegmentedPropertyCategoryCodeSequence[0].CodeValue for s in made.SegmentSequence]
    assert codes == ["123037004", "123037004", "49755003"]
    assert [tuple(s.RecommendedDisplayCIELabValue) for s in made.SegmentSequence] == [colour(v) for v in (1, 2, 3)]
    assert len({colour(value) for value in range(1, 40)}) == 39
    assert {
        f.SegmentIdentificationSequence[0].ReferencedSegmentNumber for f in made.PerFrameFunctionalGroupsSequence
    } == {2, 3}
    assert made.SeriesDescription == "SVGD Label hips version 4"
    assert made.ContentDescription == "Version 4, corrected from model version 7, replaces earlier"
    algorithm = made.SegmentSequence[1].SegmentationAlgorithmIdentificationSequence[0]
    assert (made.SegmentSequence[1].SegmentAlgorithmType, algorithm.AlgorithmVersion) == (
        "SEMIAUTOMATIC",
        "model version 7",
    )
    assert is_ours(made)
    assert referenced_series(made) == series
    assert made.SeriesInstanceUID != series


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([("AUTOMATIC", "Finder"), ("AUTOMATIC", "Finder")], True),
        ([("AUTOMATIC", "Finder"), ("MANUAL", "")], False),
        ([("AUTOMATIC", "MONAILABEL")], False),  # MONAI Label's own datastore, of what annotators have saved
        ([], False),
    ],
)
def test_a_seg_that_no_person_drew_is_known(kinds: list[tuple[str, str]], expected: bool) -> None:
    made = Dataset()
    made.SegmentSequence = [Dataset() for _ in kinds]
    for segment, (kind, name) in zip(made.SegmentSequence, kinds, strict=True):
        segment.SegmentAlgorithmType, segment.SegmentAlgorithmName = kind, name
    assert is_automatic(made) is expected


def test_the_first_colour_is_red_when_a_viewer_turns_it_back() -> None:
    lightness, a, b = colour(1)
    seen = lab2rgb([lightness * 100 / 65535, a * 255 / 65535 - 128, b * 255 / 65535 - 128])
    np.testing.assert_allclose(seen, [0.9, 0.225, 0.225], atol=0.01)


def test_a_series_without_one_of_its_slices_is_one_clear_sentence(tmp_path: Path) -> None:
    make_series(tmp_path / "series", AXIAL, without=5)
    with pytest.raises(ImageError, match="not in a row at even distances; is one missing"):
        load_volume(tmp_path / "series")
    shape, affine = AXIAL.shape, np.diag([-0.75, -1.25, 2.5, 1.0])
    affine[:3, 3] = np.array(AXIAL.origin) * [-1, -1, 1]
    labels = np.ones(shape, np.uint8)
    with pytest.raises(SegmentationError, match="frames at 10 places, its label 11 slices"):
        make_segmentation(
            tmp_path / "series", labels, affine, STRUCTURES, series_uid="1.2", instance_uid="1.3", origin=ORIGIN
        )


def edit(folder: Path, change: Callable[[pydicom.Dataset, int], None]) -> None:
    """Changes every file of a series, in the order of its slices."""
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        change(dataset, int(dataset.InstanceNumber) - 1)
        dataset.save_as(file)


@pytest.mark.parametrize("shift", [(0.0, 0.5), (0.7, 0.0)], ids=["distances drift", "slices are shifted in turn"])
def test_slices_that_lie_off_the_volumes_line_are_refused(shift: tuple[float, float], tmp_path: Path) -> None:
    """No two distances differ by more than 20 %, but the line from first to last slice runs elsewhere."""

    def move(dataset: pydicom.Dataset, k: int) -> None:
        x, y, z = AXIAL.origin
        drifted = 2.5 * k + shift[1] * max(k - 5, 0)
        dataset.ImagePositionPatient = [x + shift[0] * (k % 2), y, round(z + drifted, 4)]

    make_series(tmp_path / "series", AXIAL)
    edit(tmp_path / "series", move)
    with pytest.raises(ImageError, match="not in a row at even distances"):
        geometry(tmp_path / "series")


@pytest.mark.parametrize(
    ("characters", "name"),
    [("ISO_IR 192", "王^小東"), (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"), ("ISO_IR 144", "Иванов^Иван")],
)
def test_names_in_any_script_are_the_series_own(characters: str | list[str], name: str, tmp_path: Path) -> None:
    def rename(dataset: pydicom.Dataset, _: int) -> None:
        dataset.SpecificCharacterSet, dataset.PatientName = characters, name

    folder = tmp_path / "series"
    make_series(folder, AXIAL)
    edit(folder, rename)
    shape, affine = geometry(folder)
    make_segmentation(
        folder, labels_on_grid(shape, affine, AXIAL), affine, ("b", "Hüfte", "Tumor β"),
        series_uid=generate_uid(), instance_uid=generate_uid(), origin=ORIGIN,
    ).save_as(tmp_path / "seg.dcm")  # fmt: skip
    read = pydicom.dcmread(tmp_path / "seg.dcm")
    assert str(read.PatientName) == name
    assert [segment.SegmentLabel for segment in read.SegmentSequence] == ["b", "Hüfte", "Tumor β"]


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("SliceThickness", None),
        ("PatientBirthDate", "00000000"),
        ("PatientBirthDate", "1950"),
        ("PatientSex", "m"),
        ("StudyTime", "10:11:12"),
    ],
)
def test_what_an_export_has_spoilt_prevents_no_seg(keyword: str, value: str | None, tmp_path: Path) -> None:
    make_series(tmp_path / "series", AXIAL)
    edit(tmp_path / "series", lambda dataset, _: setattr(dataset, keyword, value))
    made = segmentation(tmp_path / "series", AXIAL)
    made.save_as(tmp_path / "seg.dcm")
    shared = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert shared.SliceThickness == (2.5 if keyword == "SliceThickness" else 2)
    assert keyword == "SliceThickness" or not made.get(keyword)


def test_a_label_map_that_lies_elsewhere_is_refused(tmp_path: Path) -> None:
    make_series(tmp_path / "series", AXIAL)
    shape, affine = geometry(tmp_path / "series")
    affine = affine.copy()
    affine[0, 3] += 0.75
    with pytest.raises(SegmentationError, match="do not lie on the slices"):
        make_segmentation(
            tmp_path / "series", np.ones(shape, np.uint8), affine, STRUCTURES,
            series_uid="1.2", instance_uid="1.3", origin=ORIGIN,
        )  # fmt: skip
