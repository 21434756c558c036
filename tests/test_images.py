"""Volumes are read as they lie in space, and what cannot be used is refused in one sentence that names the file."""

import gzip
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pydicom
import pytest
from monai.data.image_reader import PydicomReader

from svgd_label.images import ImageError, geometry, load_volume
from tests.dicom.series import GEOMETRIES, make_series

from .conftest import blob, save_nifti

AFFINE = np.array([[0.0, -2.0, 0, 5], [1.5, 0, 0, -7], [0, 0, 3, 11], [0, 0, 0, 1]])


def test_a_nifti_file_is_its_array_and_affine(tmp_path: Path) -> None:
    array, _ = blob((8, 9, 10), 0)
    path = save_nifti(tmp_path / "a.nii.gz", array, AFFINE)
    volume = load_volume(path)
    np.testing.assert_array_equal(volume[0].numpy(), array)
    np.testing.assert_allclose(volume.affine, AFFINE)
    shape, affine = geometry(path)
    assert shape == (8, 9, 10)
    np.testing.assert_allclose(affine, AFFINE)


def test_an_nrrd_file_in_lps_lies_where_its_nifti_twin_lies(tmp_path: Path) -> None:
    array, _ = blob((8, 9, 10), 0)
    lps = np.diag([-1.0, -1, 1, 1]) @ AFFINE
    header = {"space": "left-posterior-superior", "space directions": lps[:3, :3].T, "space origin": lps[:3, 3]}
    nrrd.write(str(tmp_path / "a.nrrd"), array, header)
    volume = load_volume(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(volume[0].numpy(), array)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)


def test_a_folder_of_dicom_is_one_volume(dicom_series: Path) -> None:
    volume = load_volume(dicom_series)
    files = [pydicom.dcmread(file) for file in dicom_series.iterdir()]
    assert volume.shape == (1, files[0].Columns, files[0].Rows, len(files))
    for file in files:
        # Every slice lies, transposed, where its own header places it.
        corner = np.linalg.inv(volume.affine) @ np.array([*(np.array(file.ImagePositionPatient) * [-1, -1, 1]), 1.0])
        np.testing.assert_allclose(corner[:2], 0, atol=1e-3)
        k = round(float(corner[2]))
        slope, offset = float(file.get("RescaleSlope", 1)), float(file.get("RescaleIntercept", 0))
        np.testing.assert_allclose(volume[0, :, :, k].numpy().T, file.pixel_array * slope + offset, rtol=1e-5)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_where_a_series_lies_is_read_without_its_voxels(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is what MONAI's reader says, which reads them."""
    make_series(tmp_path / "series", GEOMETRIES[name])
    files = [str(file) for file in (tmp_path / "series").iterdir()]
    reader = PydicomReader()
    reader.filenames, reader.has_series = [files], True
    array, meta = reader.get_data([pydicom.dcmread(file) for file in files])
    monkeypatch.setattr(PydicomReader, "get_data", None)
    shape, affine = geometry(tmp_path / "series")
    assert shape == array.shape
    np.testing.assert_allclose(affine, meta["affine"], atol=1e-6)


def test_a_single_channel_in_a_fourth_axis_is_taken(tmp_path: Path) -> None:
    array, _ = blob((8, 9, 10), 0)
    assert load_volume(save_nifti(tmp_path / "a.nii.gz", array[..., None])).shape == (1, 8, 9, 10)


def bad_files(folder: Path) -> dict[str, Path]:
    """One file of each kind that cannot be used."""
    array, _ = blob((8, 9, 10), 0)
    not_finite = array.copy()
    not_finite[2, 3, 4] = np.nan
    files = {
        "constant": save_nifti(folder / "constant.nii.gz", np.full((8, 9, 10), 7, np.int16)),
        "nan": save_nifti(folder / "nan.nii.gz", not_finite),
        "flat": save_nifti(folder / "flat.nii.gz", array[:, :, 0]),
        "channels": save_nifti(folder / "channels.nii.gz", np.stack([array, array], axis=-1)),
        "one slice": save_nifti(folder / "slice.nii.gz", array[:, :, :1]),
        "complex": save_nifti(folder / "complex.nii.gz", array.astype(np.complex64)),
        "rgb": save_nifti(folder / "rgb.nii.gz", np.zeros((8, 9, 10), [("R", "u1"), ("G", "u1"), ("B", "u1")])),
        "whole": save_nifti(folder / "whole.nii.gz", array),
        "whole nii": save_nifti(folder / "whole.nii", array),
    }
    content: dict[str, bytes] = {
        "empty.nii.gz": b"",
        "text.nii.gz": b"not an image at all",
        "text.nrrd": b"NRRD0005\nthis is no header",
        "cut.nii.gz": files["whole"].read_bytes()[:900],
        "cut.nii": files["whole nii"].read_bytes()[:900],
        "note.txt": b"hello",
    }
    del files["whole"], files["whole nii"]
    for name, data in content.items():
        (folder / name).write_bytes(data)
        files[name] = folder / name
    huge: Any = nibabel.Nifti1Image(array, np.eye(4)).header.copy()
    huge.set_data_shape((30000, 30000, 30000))
    (folder / "huge.nii.gz").write_bytes(gzip.compress(huge.binaryblock + bytes(400)))
    files["huge"] = folder / "huge.nii.gz"
    (folder / "empty folder").mkdir()
    files["empty folder"] = folder / "empty folder"
    files["missing"] = folder / "missing.nii.gz"
    return files


REASONS = {
    "constant": "every voxel has the same value",
    "nan": "NaN",
    "channels": "8 x 9 x 10 x 2 voxels",
    "complex": "colour or complex",
    "rgb": "colour or complex",
    "empty.nii.gz": "the file is empty",
    "cut.nii": "cut off",
    "huge": "30000 x 30000 x 30000 voxels do not fit",
    "missing": "no such file",
}


def test_each_bad_file_gets_a_sentence_that_names_it(tmp_path: Path) -> None:
    for kind, path in bad_files(tmp_path).items():
        with pytest.raises(ImageError) as caught:
            load_volume(path)
        sentence = str(caught.value)
        assert sentence.startswith(f"{path.name}: "), kind
        assert "\n" not in sentence, kind
        assert len(sentence) < 300, kind
        assert REASONS.get(kind, "") in sentence, kind


def test_an_affine_without_volume_is_refused(tmp_path: Path) -> None:
    array, _ = blob((8, 9, 10), 0)
    image = nibabel.Nifti1Image(array, np.eye(4))
    image.header["srow_x"] = 0
    image.header["qform_code"] = 0
    image.header["sform_code"] = 1
    path = tmp_path / "flat.nii"
    path.write_bytes(image.header.binaryblock + bytes(4) + array.tobytes(order="F"))
    with pytest.raises(ImageError, match=r"flat\.nii: its affine"):
        load_volume(path)
