"""Segmentations lie on the image's own grid, whatever its orientation, spacing and size."""

import itertools
import math
from pathlib import Path

import nibabel
import numpy as np
import psutil
import pytest
import torch
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

from svgd_label.bands import thresholds
from svgd_label.checkpoint import new_committee
from svgd_label.images import ImageError
from svgd_label.inference import cores, dice, evaluate, particle_moments, segment, sliding_window, window_of
from svgd_label.scoring import prepare, score
from svgd_label.svgd import Committee
from svgd_label.tasks import Task
from svgd_label.tasks.task import Intensity
from svgd_label.tasks.transforms import prepare_case, prepare_image
from svgd_label.uncertainty import maps

from .conftest import blob, save_nifti

CODES = ["".join(c) for c in itertools.product("RL", "AP", "SI")] + ["SRA", "PIL", "ASL", "IPR"]


@pytest.fixture
def committee(tiny: Task) -> Committee:
    committee = new_committee(tiny, seed=0).eval()
    for weight in committee.parameters():
        if weight.ndim == 5:  # so large that the untrained networks are sure of something somewhere
            weight.data *= 3
    return committee


class Certain(torch.nn.Module):
    """A particle that finds the same probabilities everywhere."""

    def __init__(self, probabilities: list[float]) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(probabilities).log().reshape(1, -1, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, *spatial) -> (B, C, *spatial)."""
        return self.logits.expand(len(x), -1, *x.shape[2:])


class Bright(torch.nn.Module):
    """A particle that finds the first structure where the image is above a limit."""

    def __init__(self, limit: float = 0.5) -> None:
        super().__init__()
        self.steepness = torch.nn.Parameter(torch.tensor(50.0))
        self.limit = limit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, *spatial) -> (B, 3, *spatial)."""
        above = (x - self.limit) * self.steepness
        return torch.cat([-above, above, torch.full_like(above, -1e3)], dim=1)


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
    for values, others in ((found.labels, expected.labels), (found.bands, expected.bands)):
        assert values.shape == turned.shape
        back = nibabel.Nifti1Image(values, found.affine).as_reoriented(io_orientation(found.affine))
        np.testing.assert_array_equal(np.asarray(back.dataobj), others)
        assert 0 < others.mean() < 2  # not everything one class: the comparison says something
    np.testing.assert_allclose(found.affine, turned.affine)
    assert found.volumes == expected.volumes


def test_a_coarser_image_is_segmented_on_the_tasks_grid_and_brought_back(
    tmp_path: Path, tiny: Task, committee: Committee
) -> None:
    task = tiny.model_copy(update={"spacing": (1.0, 1.0, 1.0)})
    array, _ = blob((9, 10, 6), 0)
    affine = np.diag([1.5, 1.2, 3.0, 1]) @ inv_ornt_aff(np.array([[0, -1], [1, 1], [2, 1]]), (9, 10, 6))
    found = segment(task, committee, str(save_nifti(tmp_path / "a.nii.gz", array, affine)))
    assert found.labels.shape == (9, 10, 6)
    np.testing.assert_allclose(found.affine, affine, atol=1e-5)


def turned(angle: float, tilt: float) -> NDArray[np.float64]:
    """A rotation about z, then about x."""
    return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]]
    )


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 2.0, 3.0)])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((40, 50, 14), np.diag([1.0, 1, 4])),
        ((40, 50, 20), turned(0.4, 0.3) @ np.diag([1.2, 1, 3])),
        ((40, 20, 50), np.array([[0, 0, -1.0], [-1.1, 0, 0], [0, 3, 0]])),
    ],
    ids=["thick slices", "oblique", "turned round"],
)
def test_on_another_grid_a_structure_stays_where_it_is(
    tmp_path: Path, tiny: Task, shape: tuple[int, int, int], axes: NDArray[np.float64], spacing: tuple[float, ...]
) -> None:
    """What is bright, found by a threshold on the task's grid, is what is bright on the image's own."""
    task = tiny.model_copy(update={"spacing": spacing, "intensity": Intensity(clip=(0, 1))})
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) @ axes.T
    centre = (np.array(shape) - 1) / 2 @ axes.T + [3, -2, 1]
    image = (1 - np.linalg.norm((places - centre) / [10, 14, 8], axis=-1) / 2).clip(0, 1)
    affine = np.eye(4)
    affine[:3, :3] = axes
    file = save_nifti(tmp_path / "a.nii.gz", image.astype(np.float32), affine)
    found = segment(task, Committee([Bright()]), str(file))
    bright = (image > 0.5).astype(np.uint8)
    assert dice(task, found.labels, bright)[0] > 0.84
    label = save_nifti(tmp_path / "l.nii.gz", bright, affine)
    case = prepare_case(task, str(file), str(label))
    assert dice(task, (case["image"][0].numpy() > 0.5).astype(np.uint8), case["label"][0].numpy())[0] > 0.84


def test_an_image_whose_own_grid_would_not_fit_is_refused_before_anything_is_computed(
    tmp_path: Path, tiny: Task, committee: Committee, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(save_nifti(tmp_path / "a.nii.gz", blob((40, 40, 40), 0)[0]))
    free = psutil.virtual_memory()._replace(available=40**3 * 35)  # enough to read it
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    monkeypatch.setattr(committee, "forward", None)
    with pytest.raises(ImageError, match=r"on its own grid, 40 x 40 x 40 voxels do not fit .* at present") as caught:
        segment(tiny.model_copy(update={"spacing": (4.0, 4.0, 4.0)}), committee, file)
    assert caught.value.passing


@pytest.mark.parametrize(
    ("shape", "window", "start"), [((11, 12, 16), (16, 16, 16), (2, 2, 0)), ((11, 17, 20), (16, 20, 20), (2, 1, 0))]
)
def test_an_image_that_fits_the_window_or_nearly_is_one_forward_pass_without_its_padding(
    tmp_path: Path,
    tiny: Task,
    committee: Committee,
    shape: tuple[int, int, int],
    window: tuple[int, int, int],
    start: tuple[int, int, int],
) -> None:
    array, _ = blob(shape, 0)
    image = prepare_image(tiny, str(save_nifti(tmp_path / "a.nii.gz", array))).as_tensor()
    inside = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
    padded = torch.zeros(1, 1, *window)
    padded[(0, 0, *inside)] = image[0]
    with torch.inference_mode():
        expected = committee(padded)[(0, slice(None), *inside)]
        found = sliding_window(tiny, committee, image)
    assert window_of(tiny, shape) == window
    torch.testing.assert_close(found, expected)


def test_only_a_little_larger_and_only_sizes_that_the_network_takes(tiny: Task) -> None:
    assert window_of(tiny, (21, 16, 16)) == window_of(tiny, (99, 20, 20)) == (16, 16, 16)
    deep = {**tiny.model_dump(), "network": {"name": "UNet", "arguments": {"channels": [2] * 5, "strides": [2] * 4}}}
    assert window_of(Task.model_validate({**deep, "window": [64, 48, 64]}), (65, 48, 64)) == (80, 48, 64)
    fixed = {"name": "UNETR", "arguments": {"img_size": 32, "feature_size": 2, "hidden_size": 12, "mlp_dim": 8}}
    task = Task.model_validate({**tiny.model_dump(), "network": fixed, "window": [32, 32, 32]})
    assert window_of(task, (33, 32, 32)) == (32, 32, 32)


@pytest.mark.parametrize("shape", [(5, 16, 17), (28, 29, 40), (41, 64, 16), (20, 18, 17), (20, 20, 21)])
def test_every_voxel_is_in_the_core_of_one_window_and_the_padding_in_none(
    tiny: Task, shape: tuple[int, int, int]
) -> None:
    numbered = torch.arange(1.0, 1 + math.prod(shape)).reshape(1, *shape)
    windows, seen = cores(tiny, shape), []

    def predict(x: torch.Tensor) -> torch.Tensor:
        seen.append(x[(0, 0, *windows[len(seen)])].flatten())
        return x.clone()  # what is returned is weighted in place

    assert sliding_window(tiny, predict, numbered).shape == (1, *shape)
    assert len(seen) == len(windows)
    torch.testing.assert_close(torch.cat(seen).sort().values, numbered.flatten(), rtol=0, atol=0)


# Doubt and volumes


def test_bands_are_of_the_entropy_of_the_particles_mean(tmp_path: Path, tiny: Task, committee: Committee) -> None:
    array, _ = blob((16, 16, 16), 0)
    file = str(save_nifti(tmp_path / "a.nii.gz", array))
    with torch.inference_mode():
        each = committee.logits(prepare_image(tiny, file).as_tensor().unsqueeze(0)).softmax(dim=2).numpy()
    p = each.mean(axis=0)[0].astype(np.float64)
    expected = np.digitize(-(p * np.log(p)).sum(axis=0), list(thresholds().values()))
    assert set(np.unique(expected)) == {0, 1, 2}
    np.testing.assert_array_equal(segment(tiny, committee, file).bands, expected)


@pytest.mark.parametrize(("second", "band"), [(0.19, 0), (0.21, 1), (0.39, 1), (0.41, 2)])
def test_one_doubt_everywhere_is_one_band_everywhere_also_across_windows(
    tmp_path: Path, tiny: Task, second: float, band: int
) -> None:
    committee = Committee([Certain([1 - 2 * second, 2 * second, 1e-9]), Certain([1, 1e-9, 1e-9])])
    array, _ = blob((20, 17, 30), 0)
    found = segment(tiny, committee, str(save_nifti(tmp_path / "a.nii.gz", array)))
    assert found.bands.shape == array.shape
    assert (found.bands == band).all()


def test_volumes_are_those_of_the_label_map_and_of_each_particles_own(
    tmp_path: Path, tiny: Task, committee: Committee
) -> None:
    array, _ = blob((12, 14, 16), 0)
    file = str(save_nifti(tmp_path / "a.nii.gz", array, np.diag([2.0, 1.5, 1.0, 1.0])))  # 0.003 ml a voxel
    together = segment(tiny, committee, file)
    each = [segment(tiny, Committee([particle]), file) for particle in committee.particles]
    for value, name in enumerate(tiny.labels, start=1):
        alone = [np.count_nonzero(found.labels == value) * 0.003 for found in each]
        volume = together.volumes[name]
        assert volume.ml == pytest.approx(np.count_nonzero(together.labels == value) * 0.003)
        assert (volume.lowest, volume.highest) == pytest.approx((min(alone), max(alone)))
        assert volume.lowest < volume.highest


def test_the_spread_of_volumes_counts_overlapping_windows_once(tmp_path: Path, tiny: Task) -> None:
    shape = (20, 17, 30)
    file = str(save_nifti(tmp_path / "a.nii.gz", blob(shape, 0)[0]))
    found = segment(tiny, Committee([Certain([0.1, 0.8, 0.1]), Certain([0.3, 0.2, 0.5])]), file)
    everything = pytest.approx(math.prod(shape) / 1000)
    assert (found.volumes["one"].lowest, found.volumes["one"].highest) == (0, everything)
    assert (found.volumes["two"].lowest, found.volumes["two"].highest) == (0, everything)
    assert found.volumes["one"].ml == everything  # 0.5 against 0.3 and 0.2 on average
    assert found.volumes["two"].ml == 0


def test_volumes_on_a_coarser_grid_are_in_the_images_millilitres(tmp_path: Path, tiny: Task) -> None:
    task = tiny.model_copy(update={"spacing": (2.0, 2.0, 2.0)})
    file = str(save_nifti(tmp_path / "a.nii.gz", blob((31, 41, 51), 0)[0]))
    found = segment(task, Committee([Certain([0.1, 0.8, 0.1])]), file)
    one = found.volumes["one"]
    assert one.ml == pytest.approx(31 * 41 * 51 / 1000)
    assert (one.lowest, one.highest) == pytest.approx((one.ml, one.ml))
    assert found.volumes["two"].ml == found.volumes["two"].highest == 0


def test_rounding_of_a_small_structure_does_not_widen_its_range(tmp_path: Path, tiny: Task) -> None:
    """A grid's edge explains a tenth here; that the mean's few voxels happen to lie between thick slices does not."""
    task = tiny.model_copy(update={"spacing": (1.0, 1.0, 1.0), "intensity": Intensity(clip=(0, 1))})
    image = np.zeros((12, 12, 10), np.float32)
    image[5:7, 5:7, 4] = 0.55  # one of the particles finds it in one slice of the grid only
    image[5:7, 5:7, 5] = 1
    file = str(save_nifti(tmp_path / "a.nii.gz", image, np.diag([1.0, 1, 5, 1])))
    one = segment(task, Committee([Bright(), Bright(), Bright(0.9)]), file).volumes["one"]
    nominal = segment(task, Committee([Bright()]), file).volumes["one"]
    assert one.highest <= nominal.highest * 12 * 12 * 50 / (12 * 12 * 46)


def test_particles_that_agree_find_one_volume_up_to_the_images_edge(tmp_path: Path, tiny: Task) -> None:
    """A grid ends at the centres of the outer slices, so thick ones are half there."""
    task = tiny.model_copy(update={"spacing": (1.0, 1.0, 1.0), "intensity": Intensity(clip=(0, 1))})
    image = np.zeros((12, 12, 10), np.float32)
    image[3:9, 3:9] = 1
    file = str(save_nifti(tmp_path / "a.nii.gz", image, np.diag([1.0, 1, 5, 1])))
    one = segment(task, Committee([Bright(), Bright()]), file).volumes["one"]
    assert one.ml == pytest.approx(6 * 6 * 10 * 5 / 1000)
    assert (one.lowest, one.highest) == pytest.approx((one.ml, one.ml))


def test_features_are_those_that_scoring_stores(tmp_path: Path, tiny: Task, committee: Committee) -> None:
    file = str(save_nifti(tmp_path / "a.nii.gz", blob((20, 17, 30), 0)[0]))
    features = score(tiny, committee, prepare(tiny, "a", file)).features
    assert features is not None
    np.testing.assert_allclose(segment(tiny, committee, file).features, features, rtol=1e-5)


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
