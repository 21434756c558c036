"""The level of not looking at the image uses labels of the pool and sizes of volumes, nothing else."""

from pathlib import Path

import numpy as np
import pytest
from tests.conftest import save_nifti

from svgd_label.experiments.report.floor import floor
from svgd_label.tasks import Task
from svgd_label.training import Case


def case(folder: Path, name: str, shape: tuple[int, int, int], share: float) -> Case:
    """A noise volume whose first part is structure 1, up to a share of its first axis, and whose last tenth is 2."""
    label = np.zeros(shape, np.uint8)
    label[: round(share * shape[0])] = 1
    label[round(0.9 * shape[0]) :] = 2
    image = np.random.default_rng(len(name)).normal(size=shape).astype(np.float32)
    paths = [
        save_nifti(folder / part / f"{name}.nii.gz", array) for part, array in (("images", image), ("labels", label))
    ]
    return Case(name, *map(str, paths))


def test_labels_that_lie_alike_in_every_box_are_met_whatever_its_size(tiny: Task, tmp_path: Path) -> None:
    pool = [case(tmp_path, f"pool{'x' * n}", (20 + 10 * n, 16, 18), 0.5) for n in range(4)]
    evaluation = [case(tmp_path, "smaller", (10, 30, 12), 0.5), case(tmp_path, "larger", (80, 9, 25), 0.5)]
    assert floor(tiny, pool, evaluation) == pytest.approx([1.0, 1.0], abs=0.03)


def test_where_labels_differ_the_one_map_is_their_middle(tiny: Task, tmp_path: Path) -> None:
    pool = [case(tmp_path, f"pool{n}", (40, 16, 16), share) for n, share in enumerate((0.3, 0.4, 0.5, 0.6, 0.7))]
    dice = floor(tiny, pool, [case(tmp_path, "test", (40, 16, 16), 0.3)])
    # Structure 1 up to s in the map, up to 0.3 in the volume: Dice 2 * 0.3 / (s + 0.3), s between the pool's extremes.
    assert 2 * 0.3 / (0.7 + 0.3) < dice[0] < 2 * 0.3 / (0.3 + 0.3)
    assert dice[1] == pytest.approx(1.0, abs=0.05)
