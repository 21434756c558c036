"""An uploaded label: which voxels it becomes, and the sentences it is refused with."""

import gzip
import os
import tracemalloc
from collections.abc import Sequence
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

from svgd_label.images import ImageError, geometry
from svgd_label.images.files import HEADER_ROOM
from svgd_label.labels import ConvertedLabel, LabelError, convert_label, write_label

from .conftest import NEEDS_SERVER

LABELS = ("anterior", "posterior")
ALIASES = {"anterior": ("head", "Hippocampus Head"), "posterior": ("tail",)}
SHAPE = (7, 5, 6)
RNG = np.random.default_rng(1)
TRUTH = RNG.integers(0, 3, SHAPE).astype(np.uint8)
# Oblique, anisotropic and away from the origin, as scanners make them.
AFFINE = nibabel.affines.from_matvec(
    nibabel.eulerangles.euler2mat(0.3, -0.2, 0.1) @ np.diag([0.9, 1.1, 2.5]), [-80.0, 35.5, 12.25]
)
BOTH = [{"name": "anterior", "idx": 1}, {"name": "posterior", "idx": 2}]


def save(array: NDArray[Any], path: Path, affine: NDArray[np.float64] = AFFINE) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    voxels = np.random.default_rng(0).normal(100, 20, SHAPE).astype(np.float32)
    return save(voxels, tmp_path_factory.mktemp("studies") / "case_01.nii.gz")


def convert(file: Path, info: list[dict[str, Any]] | None, image: Path) -> ConvertedLabel:
    return convert_label(file, info, image=image, labels=LABELS, aliases=ALIASES)


def refusal(file: Path, info: Any, image: Path) -> str:
    with pytest.raises(LabelError) as caught:
        convert(file, info, image)
    assert str(caught.value).startswith("The label of case_01.nii.gz was refused: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def save_nrrd(
    array: NDArray[Any],
    path: Path,
    *,
    space: str | None = "left-posterior-superior",
    segments: Sequence[tuple[str, int]] = (),
    encoding: str = "gzip",
) -> Path:
    signs = {"left-posterior-superior": [-1, -1, 1], "left-anterior-superior": [-1, 1, 1], None: [-1, -1, 1]}
    affine = np.diag([*signs.get(space, [1, 1, 1]), 1]) @ AFFINE
    header: dict[str, Any] = {
        "space directions": affine[:3, :3].T,
        "space origin": affine[:3, 3],
        "encoding": encoding,
        "kinds": ["domain"] * 3,
    }
    if space:
        header["space"] = space
    for number, (name, value) in enumerate(segments):
        header |= {f"Segment{number}_Name": name, f"Segment{number}_LabelValue": str(value)}
    nrrd.write(str(path), array, header)
    return path


# What a value means


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


# Where it lies


CODES = ["".join(codes) for codes in product("LR", "PA", "IS")]
ORIENTATIONS = ["".join(order) for code in CODES for order in permutations(code)]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(codes=st.sampled_from(ORIENTATIONS), seed=st.integers(0, 2**32 - 1), is_nrrd=st.booleans())
def test_the_same_grid_in_any_orientation_is_understood(
    image: Path, tmp_path: Path, codes: str, seed: int, is_nrrd: bool
) -> None:
    truth = np.random.default_rng(seed).integers(0, 3, SHAPE).astype(np.uint8)
    turn = ornt_transform(io_orientation(AFFINE), axcodes2ornt(tuple(codes)))
    turned, affine = apply_orientation(truth, turn), AFFINE @ inv_ornt_aff(turn, SHAPE)
    assert "".join(nibabel.aff2axcodes(affine)) == codes
    if is_nrrd:
        file = tmp_path / "label.nrrd"
        header = {
            "space": "right-anterior-superior",
            "space directions": affine[:3, :3].T,
            "space origin": affine[:3, 3],
        }
        nrrd.write(str(file), turned, header)
    else:
        file = save(turned, tmp_path / "label.nii.gz", affine)
    np.testing.assert_array_equal(convert(file, None, image).array, truth)


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("shape", [(7, 5, 7), (7, 5), (7, 5, 6, 2), (1, 1, 1)])
def test_another_shape_is_refused_with_both_shapes(image: Path, tmp_path: Path, shape: tuple[int, ...]) -> None:
    sentence = refusal(save(np.zeros(shape, np.uint8), tmp_path / "label.nii.gz"), None, image)
    assert " x ".join(map(str, shape)) in sentence
    assert "7 x 5 x 6" in sentence


def test_swapped_axes_without_the_affine_to_go_with_them_are_refused(image: Path, tmp_path: Path) -> None:
    swapped = np.zeros((5, 7, 6), np.uint8)
    assert "5 x 7 x 6" in refusal(save(swapped, tmp_path / "label.nii.gz"), None, image)


def test_a_shifted_grid_is_refused_with_the_distance(image: Path, tmp_path: Path) -> None:
    shifted = AFFINE.copy()
    shifted[0, 3] += 0.5
    sentence = refusal(save(TRUTH, tmp_path / "label.nii.gz", shifted), None, image)
    assert "0.5 mm" in sentence


def test_rounding_in_the_affine_is_forgiven(image: Path, tmp_path: Path) -> None:
    rounded = AFFINE.copy()
    rounded[0, 3] += 5e-4
    np.testing.assert_array_equal(convert(save(TRUTH, tmp_path / "l.nii.gz", rounded), None, image).array, TRUTH)


@pytest.mark.parametrize("change", ["spacing", "rotation"])
def test_another_spacing_or_rotation_is_refused(image: Path, tmp_path: Path, change: str) -> None:
    other = AFFINE.copy()
    factor = np.diag([1.01, 1, 1]) if change == "spacing" else nibabel.eulerangles.euler2mat(0.01, 0, 0)
    other[:3, :3] = factor @ other[:3, :3]
    assert "corners" in refusal(save(TRUTH, tmp_path / "label.nii.gz", other), None, image)


def test_an_affine_without_volume_is_refused(image: Path, tmp_path: Path) -> None:
    header = {"space": "right-anterior-superior", "space directions": np.diag([1, 1, 0]), "space origin": np.zeros(3)}
    nrrd.write(str(tmp_path / "label.nrrd"), TRUTH, header)
    assert "no volume" in refusal(tmp_path / "label.nrrd", None, image)


# Formats


@pytest.mark.parametrize(
    "space", ["left-posterior-superior", "left-anterior-superior", "right-anterior-superior", None]
)
@pytest.mark.parametrize("encoding", ["gzip", "bzip2", "raw"])
def test_nrrd_lies_where_its_space_says(image: Path, tmp_path: Path, space: str | None, encoding: str) -> None:
    file = save_nrrd(TRUTH, tmp_path / "label.nrrd", space=space, encoding=encoding)
    np.testing.assert_array_equal(convert(file, None, image).array, TRUTH)


def test_a_seg_nrrd_brings_its_own_names(image: Path, tmp_path: Path) -> None:
    file = save_nrrd(
        np.array([0, 7, 3], np.uint8)[TRUTH], tmp_path / "l.seg.nrrd", segments=[("Posterior", 3), ("head", 7)]
    )
    for info in (None, BOTH):
        np.testing.assert_array_equal(convert(file, info, image).array, TRUTH)


def test_a_seg_nrrd_with_one_layer_in_a_list_axis_is_understood(image: Path, tmp_path: Path) -> None:
    affine = np.diag([-1, -1, 1, 1]) @ AFFINE
    header = {
        "space": "left-posterior-superior",
        "kinds": ["list", "domain", "domain", "domain"],
        "space directions": np.vstack([np.full(3, np.nan), affine[:3, :3].T]),
        "space origin": affine[:3, 3],
    }
    nrrd.write(str(tmp_path / "one.seg.nrrd"), TRUTH[None], header)
    np.testing.assert_array_equal(convert(tmp_path / "one.seg.nrrd", None, image).array, TRUTH)
    nrrd.write(str(tmp_path / "two.seg.nrrd"), np.stack([TRUTH == 1, TRUTH == 2]).astype(np.uint8), header)
    assert "overlap" in refusal(tmp_path / "two.seg.nrrd", None, image)
    header |= {"Segment0_Name": "anterior", "Segment1_Name": "unsure"}
    nrrd.write(str(tmp_path / "bands.seg.nrrd"), np.stack([TRUTH == 1, TRUTH == 2]).astype(np.uint8), header)
    assert "delete these segments" in refusal(tmp_path / "bands.seg.nrrd", None, image)


def test_a_nrrd_that_points_at_another_file_is_refused(image: Path, tmp_path: Path) -> None:
    save_nrrd(TRUTH, tmp_path / "label.nhdr")
    header = (tmp_path / "label.nhdr").read_bytes()
    (tmp_path / "label.nrrd").write_bytes(header)
    assert "another file" in refusal(tmp_path / "label.nrrd", None, image)


def test_a_nrrd_whose_header_does_not_end_is_not_read_whole(image: Path, tmp_path: Path) -> None:
    (tmp_path / "label.nrrd").write_bytes(b"NRRD0004\nnote:=" + b"x" * (8 * HEADER_ROOM))
    tracemalloc.start()
    try:
        refusal(tmp_path / "label.nrrd", None, image)
        assert tracemalloc.get_traced_memory()[1] < 8 * HEADER_ROOM
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", ["<u1", "<u2", "<u4"])
def test_raw_voxels_come_with_the_first_axis_fastest(image: Path, tmp_path: Path, dtype: str) -> None:
    file = tmp_path / "label.bin"
    file.write_bytes(TRUTH.astype(dtype).tobytes(order="F"))
    np.testing.assert_array_equal(convert(file, BOTH, image).array, TRUTH)


@pytest.mark.parametrize("size", [1, TRUTH.size - 1, TRUTH.size + 1, TRUTH.size * 3, TRUTH.size * 8])
def test_raw_voxels_of_another_number_are_refused(image: Path, tmp_path: Path, size: int) -> None:
    (tmp_path / "label.bin").write_bytes(bytes(size))
    sentence = refusal(tmp_path / "label.bin", None, image)
    assert f"{size} bytes" in sentence
    assert "210 voxels" in sentence


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64, ">i4"])
def test_every_numeric_nifti_is_read(image: Path, tmp_path: Path, kind: Any, dtype: Any) -> None:
    (tmp_path / "label.nii").write_bytes(kind(TRUTH.astype(dtype), AFFINE).to_bytes())
    np.testing.assert_array_equal(convert(tmp_path / "label.nii", None, image).array, TRUTH)


def test_a_trailing_axis_of_one_is_dropped(image: Path, tmp_path: Path) -> None:
    np.testing.assert_array_equal(convert(save(TRUTH[..., None], tmp_path / "l.nii.gz"), None, image).array, TRUTH)


@pytest.mark.parametrize("name", ["label.nii.gz", "label.nii", "label.nrrd", "label.seg.nrrd"])
@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.9, 0.99])
def test_a_cut_off_file_is_refused(image: Path, tmp_path: Path, name: str, kept: float) -> None:
    file = tmp_path / name
    save(TRUTH, file) if "nii" in name else save_nrrd(TRUTH, file)
    data = file.read_bytes()
    file.write_bytes(data[: kept if isinstance(kept, int) else int(len(data) * kept)])
    refusal(file, None, image)


def test_a_damaged_gzip_is_refused_even_where_it_can_be_unpacked(image: Path, tmp_path: Path) -> None:
    whole = gzip.compress(nibabel.Nifti1Image(TRUTH, AFFINE).to_bytes())
    (tmp_path / "label.nii.gz").write_bytes(whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:])
    assert "CRC" in refusal(tmp_path / "label.nii.gz", None, image)


def test_a_file_that_unpacks_to_far_more_than_the_image_is_refused(image: Path, tmp_path: Path) -> None:
    with gzip.open(tmp_path / "label.nii.gz", "wb") as stream:
        stream.write(nibabel.Nifti1Image(TRUTH, AFFINE).to_bytes())
        for _ in range(100):
            stream.write(bytes(2**20))
    assert "longer" in refusal(tmp_path / "label.nii.gz", None, image)


@pytest.mark.parametrize("name", ["label.txt", "label.dcm", "label"])
def test_an_unknown_format_is_refused(image: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    assert ".nii.gz" in refusal(tmp_path / name, None, image)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=400), name=st.sampled_from(["l.nii.gz", "l.nii", "l.nrrd", "l.bin"]))
def test_any_bytes_are_a_label_or_a_sentence(image: Path, tmp_path: Path, data: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(data)
    try:
        assert set(np.unique(convert(tmp_path / name, None, image).array)) <= {0, 1, 2}
    except LabelError as error:
        assert str(error).startswith("The label of case_01.nii.gz was refused: ")  # noqa: PT017


def test_a_missing_image_is_the_images_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        convert(save(TRUTH, tmp_path / "label.nii.gz"), None, tmp_path / "none.nii.gz")


# Onto the disk


def test_what_is_written_is_read_again_and_equal_labels_are_equal_bytes(image: Path, tmp_path: Path) -> None:
    converted = convert(save(TRUTH, tmp_path / "label.nii.gz"), None, image)
    write_label(converted, tmp_path / "a.nii.gz")
    write_label(converted, tmp_path / "b.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    stored = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(stored.dataobj), TRUTH)
    np.testing.assert_allclose(stored.affine, AFFINE, atol=1e-5)
    assert stored.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(convert(tmp_path / "a.nii.gz", None, image).array, TRUTH)


def test_a_failed_write_leaves_the_old_label_and_nothing_else(image: Path, tmp_path: Path) -> None:
    converted = convert(save(TRUTH, tmp_path / "label.nii.gz"), None, image)
    folder = tmp_path / "final"
    folder.mkdir()
    (folder / "kept.nii.gz").mkdir()  # a folder cannot be replaced by a file, not even by root
    with pytest.raises(LabelError, match="cannot be stored"):
        write_label(converted, folder / "kept.nii.gz")
    assert [entry.name for entry in folder.iterdir()] == ["kept.nii.gz"]
    with pytest.raises(LabelError, match="cannot be stored"):
        write_label(converted, tmp_path / "no" / "folder.nii.gz")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which is always out of space")
def test_a_full_disk_is_a_sentence(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converted = convert(save(TRUTH, tmp_path / "label.nii.gz"), None, image)
    monkeypatch.setattr("svgd_label.labels.uuid.uuid4", lambda: type("Fixed", (), {"hex": "full"})())
    (tmp_path / ".l.nii.gz.full.tmp").symlink_to("/dev/full")
    with pytest.raises(LabelError, match="No space left"):
        write_label(converted, tmp_path / "l.nii.gz")
    assert not (tmp_path / "l.nii.gz").exists()


# Against MONAI Label's own conversion

DATA = Path(os.environ.get("SVGD_LABEL_DATA", Path(__file__).parents[2] / "shared" / "data"))
SERIES = sorted(path for path in (DATA / "dicom" / "hippocampus").glob("*") if path.is_dir())


@NEEDS_SERVER
@pytest.mark.slow
@pytest.mark.skipif(not SERIES, reason=f"no DICOM series in {DATA / 'dicom'}; set SVGD_LABEL_DATA")
def test_a_browsers_voxels_of_a_dicom_series_lie_where_monai_label_puts_them(tmp_path: Path) -> None:
    from monailabel.datastore.utils.convert import binary_to_image

    series = SERIES[0]
    shape, affine = geometry(series)
    raw = tmp_path / "label.bin"
    raw.write_bytes(np.random.default_rng(0).integers(0, 3, int(np.prod(shape))).astype(np.uint8).tobytes())
    theirs = nibabel.load(binary_to_image(str(series), str(raw)))
    nifti = save(np.asanyarray(theirs.dataobj), tmp_path / "label.nii.gz", theirs.affine)
    ours = convert_label(raw, BOTH, image=series, labels=LABELS, aliases={})
    again = convert_label(nifti, BOTH, image=series, labels=LABELS, aliases={})
    np.testing.assert_array_equal(ours.array, again.array)
    np.testing.assert_array_equal(ours.affine, affine)
