"""The file formats a label is uploaded in, whole, damaged or unknown."""

import gzip
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.labels.uploads import AFFINE, BOTH, TRUTH, convert, refusal, save, save_nrrd

from svgd_label.images import ImageError
from svgd_label.images.files import HEADER_ROOM
from svgd_label.labels import LabelError


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
