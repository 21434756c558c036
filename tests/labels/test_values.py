"""What a value in an uploaded label means, and the sentences it is refused with."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.labels.uploads import BOTH, LABELS, SHAPE, TRUTH, convert, refusal, save, save_nrrd

from svgd_label.images import geometry
from svgd_label.labels import convert_label


def test_values_are_the_tasks_own_without_names(image: Path, tmp_path: Path) -> None:
    converted = convert(save(TRUTH, tmp_path / "label.nii.gz"), None, image)
    np.testing.assert_array_equal(converted.array, TRUTH)
    np.testing.assert_array_equal(converted.affine, geometry(image)[1])
    assert converted.array.dtype == np.uint8
    assert (converted.ignored, converted.missing) == ([], [])


def test_names_decide_when_the_segments_were_saved_in_another_order(image: Path, tmp_path: Path) -> None:
    swapped = np.array([0, 2, 1], np.uint8)[TRUTH]
    info = [{"name": "posterior", "idx": 1}, {"name": "anterior", "idx": 2}]
    np.testing.assert_array_equal(convert(save(swapped, tmp_path / "label.nii.gz"), info, image).array, TRUTH)


def test_a_deleted_first_segment_does_not_shift_the_second(image: Path, tmp_path: Path) -> None:
    file = save((TRUTH == 2).astype(np.uint8), tmp_path / "label.nii.gz")
    converted = convert(file, [{"name": "posterior", "idx": 1}], image)
    np.testing.assert_array_equal(converted.array, np.where(TRUTH == 2, 2, 0))
    assert converted.missing == ["anterior"]


@pytest.mark.parametrize("names", [(" Anterior ", "POSTERIOR"), ("head", "tail"), ("HIPPOCAMPUS head", " Tail")])
def test_names_match_without_case_and_blanks_and_by_alias(image: Path, tmp_path: Path, names: tuple[str, str]) -> None:
    info = [{"name": name, "idx": idx} for idx, name in enumerate(names, start=1)]
    converted = convert(save(TRUTH, tmp_path / "label.nii.gz"), info, image)
    np.testing.assert_array_equal(converted.array, TRUTH)
    assert converted.missing == []


def test_the_name_of_a_structure_comes_before_anothers_alias(image: Path, tmp_path: Path) -> None:
    file = save(TRUTH, tmp_path / "label.nii.gz")
    aliases = {"anterior": ("posterior",)}
    converted = convert_label(file, BOTH, image=image, labels=LABELS, aliases=aliases)
    np.testing.assert_array_equal(converted.array, TRUTH)


@pytest.mark.parametrize("idx", [0, 1])
def test_background_among_the_names_is_background(image: Path, tmp_path: Path, idx: int) -> None:
    info = [
        {"name": "Background", "idx": idx},
        {"name": "anterior", "idx": idx + 1},
        {"name": "posterior", "idx": idx + 2},
    ]
    shifted = TRUTH + np.uint8(idx)
    converted = convert(save(shifted, tmp_path / "label.nii.gz"), info, image)
    np.testing.assert_array_equal(converted.array, TRUTH)
    assert converted.ignored == []


def test_names_without_idx_count_from_one(image: Path, tmp_path: Path) -> None:
    info: list[dict[str, Any]] = [{"name": "background"}, {"name": "anterior"}, {"name": "posterior"}]
    np.testing.assert_array_equal(convert(save(TRUTH, tmp_path / "label.nii.gz"), info, image).array, TRUTH)


def test_slicer_counts_left_out_scribbles_in_idx_but_not_in_the_file(image: Path, tmp_path: Path) -> None:
    info = [{"name": "anterior", "idx": 1}, {"name": "posterior", "idx": 3}]
    np.testing.assert_array_equal(convert(save(TRUTH, tmp_path / "label.nii.gz"), info, image).array, TRUTH)


def test_an_idx_that_is_in_the_file_is_believed(image: Path, tmp_path: Path) -> None:
    info = [{"name": "anterior", "idx": 4}, {"name": "posterior", "idx": 9}]
    spread = np.array([0, 4, 9], np.uint8)[TRUTH]
    np.testing.assert_array_equal(convert(save(spread, tmp_path / "label.nii.gz"), info, image).array, TRUTH)


def test_values_that_can_be_read_two_ways_are_not_guessed(image: Path, tmp_path: Path) -> None:
    info = [{"name": "anterior", "idx": 2}, {"name": "posterior", "idx": 3}]
    only_two = np.where(TRUTH == 2, 2, 0).astype(np.uint8)
    assert "without gaps" in refusal(save(only_two, tmp_path / "label.nii.gz"), info, image)
    raw = tmp_path / "label.bin"
    raw.write_bytes(only_two.tobytes(order="F"))
    assert set(np.unique(convert(raw, info, image).array)) == {0, 1}, "a browser's raw voxels are the idx themselves"


def test_two_segments_of_one_name_become_one_structure(image: Path, tmp_path: Path) -> None:
    info = [{"name": "anterior", "idx": 1}, {"name": "head", "idx": 2}]
    converted = convert(save(TRUTH, tmp_path / "label.nii.gz"), info, image)
    np.testing.assert_array_equal(converted.array, TRUTH > 0)


def test_an_empty_label_is_a_label(image: Path, tmp_path: Path) -> None:
    empty = np.zeros(SHAPE, np.uint8)
    for info in (None, [], BOTH, [{"name": "anterior", "idx": 1}]):
        assert not convert(save(empty, tmp_path / "label.nii.gz"), info, image).array.any()


def test_an_unknown_segment_beside_all_structures_is_left_out_and_named(image: Path, tmp_path: Path) -> None:
    with_cyst = TRUTH.copy()
    with_cyst[0, 0] = 3
    converted = convert(save(with_cyst, tmp_path / "label.nii.gz"), [*BOTH, {"name": "cyst", "idx": 3}], image)
    np.testing.assert_array_equal(converted.array, np.where(with_cyst == 3, 0, with_cyst))
    assert converted.ignored == ["cyst"]


def test_an_unknown_segment_in_place_of_a_structure_is_refused(image: Path, tmp_path: Path) -> None:
    file = save(TRUTH, tmp_path / "label.nii.gz")
    sentence = refusal(file, [{"name": "anterior", "idx": 1}, {"name": "posteriour", "idx": 2}], image)
    assert "'posteriour'" in sentence
    assert "'posterior'" in sentence
    assert all(known in sentence for known in ("anterior", "head", "tail"))


@pytest.mark.parametrize("name", ["unsure", "Very Unsure"])
def test_bands_of_doubt_saved_over_the_structures_are_refused(image: Path, tmp_path: Path, name: str) -> None:
    covered = TRUTH.copy()
    covered[2:4] = 3
    sentence = refusal(save(covered, tmp_path / "label.nii.gz"), [*BOTH, {"name": name, "idx": 3}], image)
    assert f"{name!r} show where the committee is unsure and cover the structures" in sentence
    assert "delete these segments and save again" in sentence
    converted = convert(save(TRUTH, tmp_path / "clear.nii.gz"), [*BOTH, {"name": name, "idx": 3}], image)
    np.testing.assert_array_equal(converted.array, TRUTH)


def test_an_unknown_segment_without_voxels_harms_nobody(image: Path, tmp_path: Path) -> None:
    file = save((TRUTH == 1).astype(np.uint8), tmp_path / "label.nii.gz")
    converted = convert(file, [{"name": "anterior", "idx": 1}, {"name": "new", "idx": 2}], image)
    assert (converted.ignored, converted.missing) == (["new"], ["posterior"])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (np.full(SHAPE, 3, np.uint8), "value 3"),
        (np.full(SHAPE, -1, np.int16), "value -1"),
        (np.full(SHAPE, 70000, np.int32), "value 70000"),
        (np.full(SHAPE, 0.5, np.float32), "0.5"),
        (np.full(SHAPE, np.nan, np.float32), "NaN"),
        (np.full(SHAPE, np.inf, np.float64), "infinite"),
        (np.full(SHAPE, 1j, np.complex64), "whole numbers"),
    ],
)
def test_values_outside_the_task_are_refused(image: Path, tmp_path: Path, wrong: NDArray[Any], words: str) -> None:
    assert words in refusal(save(wrong, tmp_path / "label.nii.gz"), None, image)


@pytest.mark.parametrize(
    "info",
    [
        "anterior",
        {"name": "anterior"},
        ["anterior"],
        [{"idx": 1}],
        [{"name": 3, "idx": 1}],
        [{"name": "anterior", "idx": "1"}],
        [{"name": "anterior", "idx": -1}],
        [{"name": "anterior", "idx": True}],
        [{"name": "anterior", "idx": 10**9}],
        [{"name": "anterior", "idx": 1.5}, {"name": "posterior", "idx": 2}],
        [{"name": "anterior", "idx": None}, {"name": "posterior", "idx": 2}],
        [{"name": "anterior", "idx": float("nan")}],
        [{"name": "anterior", "idx": 2}, {"name": "posterior"}],
        [{"name": "anterior", "idx": 0}, {"name": "posterior", "idx": 1}],
        [{"name": "anterior", "idx": 1}, {"name": "posterior", "idx": 1}],
    ],
)
def test_a_label_info_of_another_form_is_refused(image: Path, tmp_path: Path, info: Any) -> None:
    assert "label_info" in refusal(save(TRUTH, tmp_path / "label.nii.gz"), info, image)


def test_a_whole_number_may_be_written_as_a_fraction(image: Path, tmp_path: Path) -> None:
    swapped = np.array([0, 2, 1], np.uint8)[TRUTH]
    info = [{"name": "posterior", "idx": 1.0}, {"name": "anterior", "idx": 2.0}]
    np.testing.assert_array_equal(convert(save(swapped, tmp_path / "label.nii.gz"), info, image).array, TRUTH)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((1, 70000), "'posterior' has 70000 as LabelValue"),
        ((-1, 2), "'anterior' has -1 as LabelValue"),
        ((0, 1), "'anterior' has 0 as LabelValue"),
        ((1, 1), "two segments have the same LabelValue"),
    ],
)
def test_values_in_a_seg_nrrd_that_belong_to_no_segment_are_refused(
    image: Path, tmp_path: Path, values: tuple[int, int], words: str
) -> None:
    segments = list(zip(LABELS, values, strict=True))
    assert words in refusal(save_nrrd(TRUTH, tmp_path / "l.seg.nrrd", segments=segments), None, image)
