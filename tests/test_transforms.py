"""An image and its label come to the task's grid, and through augmentation, at matching positions."""

from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from svgd_label.tasks import Task
from svgd_label.tasks.transforms import normalise, prepare_case, prepare_image, training_transforms

from .conftest import blob, save_nifti


def test_an_image_comes_to_ras_however_it_is_stored(tmp_path: Path, tiny: Task) -> None:
    array, _ = blob((8, 9, 10), 0)
    original = nibabel.Nifti1Image(array, np.eye(4))
    turned = original.as_reoriented(ornt_transform(io_orientation(np.eye(4)), axcodes2ornt(tuple("PIL"))))
    nibabel.save(turned, tmp_path / "turned.nii.gz")
    expected = prepare_image(tiny, str(save_nifti(tmp_path / "a.nii.gz", array)))
    found = prepare_image(tiny, str(tmp_path / "turned.nii.gz"))
    assert found.shape == (1, 8, 9, 10)
    torch.testing.assert_close(found.as_tensor(), expected.as_tensor())
    low, high = np.percentile(array, (0.5, 99.5))
    np.testing.assert_allclose(found[0].numpy(), ((array - low) / (high - low)).clip(0, 1), atol=1e-4)


def test_a_resampled_label_holds_no_value_that_it_did_not_hold(tmp_path: Path, tiny: Task) -> None:
    task = tiny.model_copy(update={"spacing": (1.0, 1.0, 1.0)})
    label = np.zeros((6, 6, 6), np.uint8)
    label[2:4, 2:4, 2:4] = 2
    affine = np.diag([1.5, 2.0, 2.5, 1])
    files = [save_nifti(tmp_path / n, a, affine) for n, a in (("a.nii", blob((6, 6, 6), 0)[0]), ("l.nii", label))]
    found = prepare_case(task, *map(str, files))["label"]
    assert found.shape[1:] != label.shape
    assert found.unique().tolist() == [0, 2]  # a mixture of 0 and 2 would be 1


def test_augmentation_moves_the_label_with_its_image(tmp_path: Path, tiny: Task) -> None:
    _, label = blob((16, 16, 16), 0)
    files = [save_nifti(tmp_path / name, array) for name, array in (("a.nii", label * 100.0), ("l.nii", label))]
    prepared = prepare_case(tiny, *map(str, files))
    transforms = training_transforms(tiny)
    transforms.set_random_state(0)
    for _ in range(30):
        (sample,) = transforms(prepared)
        background, one, two = (float(sample["image"][sample["label"] == value].mean()) for value in range(3))
        assert background < one < two
        assert background < 0.2 * two


def test_a_volume_whose_percentiles_coincide_stays_in_the_unit_interval(tiny: Task) -> None:
    values = torch.full((1, 10, 10, 10), 5.0)
    values[0, 0, 0, 0] = 900.0
    found = normalise(tiny, MetaTensor(values)).as_tensor()
    assert torch.isfinite(found).all()
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
