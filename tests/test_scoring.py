"""Scores of one image equal those computed from the particles' logits by numpy; saturated images are told."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import softmax

from svgd_label.checkpoint import new_committee
from svgd_label.images import ImageError
from svgd_label.scoring import mi_codes, mi_shape, prepare, score
from svgd_label.svgd import Committee
from svgd_label.tasks import Task

from .conftest import blob, save_nifti


@pytest.mark.parametrize("aggregate", ["mean", "sum"])
@pytest.mark.parametrize("shape", [(16, 16, 16), (11, 12, 9)])
def test_scores_are_over_the_images_own_voxels(
    tmp_path: Path, tiny: Task, aggregate: str, shape: tuple[int, int, int]
) -> None:
    task = tiny.model_copy(update={"aggregate": aggregate})
    committee = new_committee(task, seed=2).eval()
    array, _ = blob(shape, 0)
    prepared = prepare(task, "a", str(save_nifti(tmp_path / "a.nii.gz", array)))
    assert prepared.image.shape == (1, *shape)
    row = score(task, committee, prepared)

    before = [(16 - n) // 2 for n in shape]
    pad = [p for n, b in zip(reversed(shape), reversed(before), strict=True) for p in (b, 16 - n - b)]
    own = tuple(slice(b, b + n) for n, b in zip(shape, before, strict=True))
    with torch.inference_mode():
        logits = committee.logits(torch.nn.functional.pad(prepared.image, pad).unsqueeze(0)).numpy()
    p = softmax(logits.astype(np.float64), axis=2)[:, 0][(slice(None), slice(None), *own)]  # (M, C, X, Y, Z)
    reduce = np.mean if aggregate == "mean" else np.sum
    mean = p.mean(axis=0)
    entropy = -(mean * np.log(mean)).sum(axis=0)
    expected = -(p * np.log(p)).sum(axis=1).mean(axis=0)
    assert row.entropy == pytest.approx(reduce(entropy), rel=1e-4)
    assert row.expected_entropy == pytest.approx(reduce(expected), rel=1e-4)
    assert row.jsd == pytest.approx(reduce(entropy - expected), rel=1e-2, abs=1e-6)
    assert row.variance == pytest.approx(reduce(p.var(axis=0).sum(axis=0)), rel=1e-3)
    assert row.details["volume_voxels"] == {"one": (mean.argmax(axis=0) == 1).sum(), "two": (mean.argmax(0) == 2).sum()}
    assert row.details["class_entropy"]["two"] == pytest.approx(reduce(mean[2] * entropy), rel=1e-4)


@pytest.mark.parametrize("particles", [1, 3])
def test_overlapping_windows_are_no_disagreement_of_equal_particles(tmp_path: Path, tiny: Task, particles: int) -> None:
    one = new_committee(tiny, seed=2).eval().particles[0]
    for weight in one.parameters():
        if weight.ndim == 5:  # so large that neighbouring windows differ in where they overlap
            weight.data *= 3
    prepared = prepare(tiny, "a", str(save_nifti(tmp_path / "a.nii.gz", blob((28, 28, 28), 0)[0])))
    row = score(tiny, Committee([one, *(deepcopy(one) for _ in range(particles - 1))]), prepared)
    assert row.jsd == pytest.approx(0, abs=1e-6)
    assert row.variance == pytest.approx(0, abs=1e-6)
    assert row.entropy > row.expected_entropy + 1e-3


def test_features_are_the_mean_of_the_particles_bottlenecks(tmp_path: Path, tiny: Task) -> None:
    committee = new_committee(tiny, seed=2).eval()
    array, _ = blob((16, 16, 16), 0)
    prepared = prepare(tiny, "a", str(save_nifti(tmp_path / "a.nii.gz", array)))
    row = score(tiny, committee, prepared)
    assert row.features is not None
    assert row.features.shape == (8,)  # the channels of the lowest level
    alone = [score(tiny.model_copy(), type(committee)([p]), prepared).features for p in committee.particles]
    np.testing.assert_allclose(row.features, np.mean(alone, axis=0), rtol=1e-5)
    assert not any(module._forward_hooks for module in committee.modules())


def test_an_image_is_compared_on_the_common_grid_without_padding(tmp_path: Path, tiny: Task) -> None:
    array, _ = blob((12, 10, 14), 0)
    prepared = prepare(tiny, "a", str(save_nifti(tmp_path / "a.nii.gz", array)))
    assert prepared.codes.shape == mi_shape(tiny) == (8, 8, 8)
    grid = torch.nn.functional.interpolate(prepared.image[None], (8, 8, 8), mode="trilinear")
    np.testing.assert_array_equal(prepared.codes, np.minimum(grid[0, 0].numpy() * 64, 63).astype(np.uint8))
    padded = tiny.model_copy(update={"mi_grid": "padded"})
    whole = mi_codes(padded, prepared.image)
    assert whole.shape == (16, 16, 16)
    assert (whole[:2] == 0).all()
    assert (whole[:, :3] == 0).all()


@pytest.mark.parametrize("inside", [1, 5])
def test_a_saturated_image_is_unscorable(tmp_path: Path, tiny: Task, inside: int) -> None:
    task = tiny.model_copy(
        update={"intensity": tiny.intensity.model_copy(update={"percentiles": None, "clip": (0, 1)})}
    )
    array = np.full((10, 10, 10), 5000.0, np.float32)
    array.reshape(-1)[:inside] = 0.3
    with pytest.raises(ImageError, match="a: after normalisation 99 %"):
        prepare(task, "a", str(save_nifti(tmp_path / "a.nii.gz", array)))
    array.reshape(-1)[:20] = 0.3
    assert prepare(task, "a", str(save_nifti(tmp_path / "a.nii.gz", array))).id == "a"
