"""Segmentations lie on the image's own grid, whatever its orientation, spacing and size."""

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from svgd_label.checkpoint import new_committee
from svgd_label.inference import count_windows, dice, evaluate, particle_moments, segment, sliding_window
from svgd_label.svgd import Committee
from svgd_label.tasks import Task
from svgd_label.tasks.transforms import prepare_image
from svgd_label.uncertainty import maps

from .conftest import blob, save_nifti

CODES = ["".join(c) for c in itertools.product("RL", "AP", "SI")] + ["SRA", "PIL", "ASL", "IPR"]


@pytest.fixture
def committee(tiny: Task) -> Committee:
    return new_committee(tiny, seed=0).eval()


@pytest.mark.parametrize("codes", CODES)
def test_another_orientation_of_an_image_has_the_same_segmentation(
    tmp_path: Path, tiny: Task, committee: Committee, codes: str
) -> None:
    array, _ = blob((12, 14, 16), 0)
    original = nibabel.Nifti1Image(array, np.diag([1.0, 1, 1, 1]))
    turned = original.as_reoriented(ornt_transform(io_orientation(original.affine), axcodes2ornt(tuple(codes))))
    nibabel.save(original, tmp_path / "a.nii.gz")
    nibabel.save(turned, tmp_path / "b.nii.gz")
    expected = segment(tiny, committee, str(tmp_path / "a.nii.gz"))
    found = segment(tiny, committee, str(tmp_path / "b.nii.gz"))
    assert found.labels.shape == turned.shape
    np.testing.assert_allclose(found.affine, turned.affine)
    back = nibabel.Nifti1Image(found.labels, found.affine).as_reoriented(io_orientation(found.affine))
    np.testing.assert_array_equal(np.asarray(back.dataobj), expected.labels)
    assert 0 < expected.labels.mean() < 2  # not everything one class: the comparison says something


def test_a_coarser_image_is_segmented_on_the_tasks_grid_and_brought_back(
    tmp_path: Path, tiny: Task, committee: Committee
) -> None:
    task = tiny.model_copy(update={"spacing": (1.0, 1.0, 1.0)})
    array, _ = blob((9, 10, 6), 0)
    affine = np.diag([1.5, 1.2, 3.0, 1]) @ inv_ornt_aff(np.array([[0, -1], [1, 1], [2, 1]]), (9, 10, 6))
    found = segment(task, committee, str(save_nifti(tmp_path / "a.nii.gz", array, affine)))
    assert found.labels.shape == (9, 10, 6)
    np.testing.assert_allclose(found.affine, affine, atol=1e-5)


def test_an_image_that_fits_the_window_is_one_forward_pass_without_its_padding(
    tmp_path: Path, tiny: Task, committee: Committee
) -> None:
    array, _ = blob((11, 12, 16), 0)
    image = prepare_image(tiny, str(save_nifti(tmp_path / "a.nii.gz", array))).as_tensor()
    padded = torch.nn.functional.pad(image, (0, 0, 2, 2, 2, 3)).unsqueeze(0)
    with torch.inference_mode():
        expected = committee(padded)[0, :, 2:13, 2:14]
        found = sliding_window(tiny, committee, image)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shape", [(5, 16, 17), (28, 29, 40), (41, 64, 16)])
def test_the_windows_that_progress_is_counted_in_are_those_that_are_predicted(
    tiny: Task, shape: tuple[int, int, int]
) -> None:
    seen = []

    def predict(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.shape)
        return x

    found = sliding_window(tiny, predict, torch.rand(1, *shape))
    assert found.shape == (1, *shape)
    assert len(seen) == count_windows(tiny, shape)


def test_the_stitched_sums_are_those_of_all_particles_at_once(tmp_path: Path, tiny: Task, committee: Committee) -> None:
    array, _ = blob((16, 16, 16), 0)
    image = prepare_image(tiny, str(save_nifti(tmp_path / "a.nii.gz", array))).as_tensor()
    with torch.inference_mode():
        found = maps(sliding_window(tiny, lambda x: particle_moments(committee, x), image).unsqueeze(0))
        each = committee.logits(image.unsqueeze(0)).softmax(dim=2)
    torch.testing.assert_close(found.mean, each.mean(dim=0))
    torch.testing.assert_close(found.variance, each.var(dim=0, unbiased=False).sum(dim=1), atol=1e-6, rtol=1e-4)


def test_dice_of_each_structure(tiny: Task, committee: Committee, tmp_path: Path) -> None:
    a = np.zeros((4, 4, 4), np.uint8)
    b = a.copy()
    a[:2], b[1:3] = 1, 1
    assert dice(tiny, a, b)[0] == pytest.approx(0.5)
    assert np.isnan(dice(tiny, a, b)[1])
    image, label = blob((12, 12, 12), 0)
    files = str(save_nifti(tmp_path / "a.nii.gz", image)), str(save_nifti(tmp_path / "l.nii.gz", label))
    assert evaluate(tiny, committee, [files]) == [dice(tiny, segment(tiny, committee, files[0]).labels, label)]
