"""Where an uploaded label lies: on the image's grid in any orientation, or it is refused."""

import os
from itertools import permutations, product
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from tests.conftest import NEEDS_SERVER, ROOT
from tests.labels.uploads import AFFINE, BOTH, LABELS, SHAPE, TRUTH, convert, refusal, save

from svgd_label.images import geometry
from svgd_label.labels import convert_label

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


# Against MONAI Label's own conversion

DATA = Path(os.environ.get("SVGD_LABEL_DATA", ROOT.parent / "shared" / "data"))
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
