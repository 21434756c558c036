"""The study of drive and repulsion: its measures against closed forms, its arms against what they claim to be."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor, nn

from svgd_label.checkpoint import new_committee
from svgd_label.errors import UserError
from svgd_label.experiments.dataset import Dataset
from svgd_label.experiments.repulsion import study as repulsion
from svgd_label.experiments.repulsion.figure import draw, table
from svgd_label.experiments.repulsion.study import ARMS, Arm, Observer, Step, auroc, calibration, measure, study, terms
from svgd_label.svgd import Committee, phi
from svgd_label.tasks import Task
from svgd_label.training import train

from .conftest import blob, save_nifti


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three volumes to train on and two to measure on, as the Decathlon lays them out."""
    names = [f"blob_{number}.nii.gz" for number in range(5)]
    for seed, name in enumerate(names):
        image, label = blob((16, 16, 16), seed)
        save_nifti(tmp_path / "data" / "imagesTr" / name, image)
        save_nifti(tmp_path / "data" / "labelsTr" / name, label)
    (tmp_path / "data" / "splits.json").write_text(json.dumps({"pool": names[:3], "dev": names[3:]}))
    return tmp_path / "data"


def test_terms_of_particles_at_equal_distance_have_their_closed_forms() -> None:
    count, distance = 5, 3.0
    particles = torch.eye(count, 8, dtype=torch.float64) * distance / math.sqrt(2)
    scores = 2 * torch.eye(count, 8, dtype=torch.float64).flip(1)
    found = terms(particles, scores)
    assert found["distance"] == pytest.approx(distance)
    assert found["own"] == pytest.approx(2 / count)
    assert found["others"] == pytest.approx(2 * math.sqrt(count - 1) / count**2)  # the kernel is 1/M
    expected = 2 * math.log(count) / (count * distance) * math.sqrt((count - 1) / (2 * count))
    assert found["repulsion"] == pytest.approx(expected)
    assert found["cosine"] == pytest.approx(0)
    # Particles lie in columns 0 to 4, scores in 3 to 7: repulsion is alone in three columns of eight, and in the two
    # that they share it is the stronger for one particle each, which has its place but not its score there.
    assert found["repelled"] == pytest.approx((3 * count + 2) / (8 * count))


def test_calibration_of_known_voxels() -> None:
    probabilities = np.tile([0.8, 0.15, 0.05], (10, 1))
    labels = np.array([0] * 6 + [1] * 3 + [2])
    found = calibration(probabilities, labels)
    assert found["ece"] == pytest.approx(0.2)
    assert found["nll"] == pytest.approx(log_loss(labels, probabilities))
    one_hot = np.eye(3)[labels]
    assert found["brier"] == pytest.approx(((probabilities - one_hot) ** 2).sum(axis=1).mean())


def test_under_and_overconfidence_of_different_bins_do_not_cancel() -> None:
    probabilities = np.array([[0.9, 0.1]] * 2 + [[0.6, 0.4]] * 2)
    assert calibration(probabilities, np.array([0, 1, 0, 0]))["ece"] == pytest.approx((0.4 + 0.4) / 2)


def test_auroc_is_scikit_learns_with_ties() -> None:
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 6, 300).astype(float), rng.random(300) < 0.2
    assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))
    assert math.isnan(auroc(scores, np.zeros(300, bool)))


class _Reader(nn.Module):
    """A particle that reads the classes off the image and says those of ``shift`` voxels further on."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(float(shift)))

    def forward(self, x: Tensor) -> Tensor:
        classes = x[:, 0].round().long().roll(int(self.shift), dims=1)
        return 50.0 * nn.functional.one_hot(classes, 3).movedim(-1, 1).float()


class _Nothing(_Reader):
    """A particle that says background everywhere."""

    def __init__(self) -> None:
        super().__init__(0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(0 * x)


def test_a_committee_is_measured_by_its_mean_and_its_particles_against_each_other(tiny: Task) -> None:
    label = torch.from_numpy(blob((16, 16, 16), 0)[1]).unsqueeze(0)
    cases = [{"image": label.float(), "label": label}]
    right = measure(tiny, Committee([_Reader(0), _Reader(0)]), cases)
    assert (right["dice"], right["particle_dice"], right["disagreement"]) == (1, 1, 0)
    assert right["ece"] == pytest.approx(0, abs=1e-6) and right["brier"] == pytest.approx(0, abs=1e-6)
    outvoted = measure(tiny, Committee([_Reader(0), _Reader(0), _Reader(2)]), cases)
    assert outvoted["dice"] == 1
    single = measure(tiny, Committee([_Reader(2)]), cases)
    assert outvoted["particle_dice"] == pytest.approx((2 + single["dice"]) / 3)
    assert outvoted["disagreement"] == pytest.approx(2 / 3 * (1 - single["dice"]))
    assert outvoted["jsd"] > 0


def test_a_particle_that_finds_nothing_disagrees_fully_with_one_that_does(tiny: Task) -> None:
    label = torch.from_numpy(blob((16, 16, 16), 0)[1]).unsqueeze(0)
    cases = [{"image": label.float(), "label": label}]
    for particles, expected in (
        ([_Reader(0), _Nothing()], 1),
        ([_Nothing(), _Reader(0)], 1),
        ([_Nothing(), _Nothing()], 0),
        ([_Reader(0), _Reader(0), _Nothing()], 2 / 3),
    ):
        assert measure(tiny, Committee(particles), cases)["disagreement"] == pytest.approx(expected)


def _trained(task: Task, data: Path, arm: Arm) -> Committee:
    """A committee after a training under an arm."""
    committee = new_committee(task, seed=0)
    task = arm.task(task, committee)
    observer = Observer(arm, committee, task.steps)
    train(task, Dataset.read(data).splits["pool"], committee, seed=0, attach=observer.attach)
    return committee


def test_the_ensemble_arm_trains_every_particle_as_if_it_were_alone(tiny: Task, data: Path) -> None:
    together = _trained(tiny, data, ARMS["ensemble"])
    image = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    for particle, other in zip(new_committee(tiny, seed=0).particles, together.particles, strict=True):
        train(tiny, Dataset.read(data).splits["pool"], Committee([particle]), seed=0)
        # Not the weights: biases before a normalisation have no gradient but rounding, which Adam turns into steps.
        torch.testing.assert_close(particle(image), other(image), rtol=0, atol=1e-4)


def test_a_velocity_of_ones_own_reaches_the_optimizer_as_phi_would(tiny: Task, data: Path) -> None:
    svgd = _trained(tiny, data, ARMS["svgd"]).matrix()
    own = _trained(tiny, data, Arm("phi", velocity=lambda step: phi(step.particles, step.scores))).matrix()
    torch.testing.assert_close(own, svgd, rtol=0, atol=1e-5)
    assert (_trained(tiny, data, ARMS["ensemble"]).matrix() - svgd).abs().max() > 1e-3


def _step(tiny: Task, **changes: Any) -> Step:
    committee = new_committee(tiny.model_copy(update={"particles": 3}), seed=0)
    images = torch.rand(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    particles = committee.matrix()
    scores = torch.randn(particles.shape, generator=torch.Generator().manual_seed(1))
    return Step(
        **{"particles": particles, "scores": scores, "committee": committee, "images": images, "done": 0.0, **changes}
    )


def test_annealing_goes_from_svgd_to_the_ensemble(tiny: Task) -> None:
    step = _step(tiny)
    torch.testing.assert_close(repulsion.annealed(step), phi(step.particles, step.scores))
    torch.testing.assert_close(repulsion.annealed(_step(tiny, done=1.0)), step.scores / 3)


def test_each_weight_tensor_has_its_own_kernel(tiny: Task) -> None:
    step = _step(tiny)
    first = step.committee.trainable()[0][0].numel()
    expected = phi(step.particles[:, :first].contiguous(), step.scores[:, :first].contiguous())
    torch.testing.assert_close(repulsion.by_layer(step)[:, :first], expected)


def test_repulsion_between_predictions_drives_predictions_apart(tiny: Task) -> None:
    step = _step(tiny, scores=torch.zeros_like(_step(tiny).scores))

    def spread() -> Tensor:
        outputs = step.committee.logits(step.images).softmax(dim=2).flatten(1)
        return torch.nn.functional.pdist(outputs).mean()

    before = spread()
    velocity = repulsion.by_predictions(step)
    with torch.no_grad():
        for row, values in zip(step.committee.trainable(), velocity, strict=True):
            for parameter, value in zip(row, values.split([p.numel() for p in row]), strict=True):
                parameter += 1e-3 * value.view(parameter.shape)
    assert spread() > before


def test_a_finished_run_is_not_run_again_and_all_are_drawn(tiny: Task, data: Path, tmp_path: Path) -> None:
    study(tiny, data, tmp_path, arms=["svgd", "ensemble", "by_predictions"], seeds=[100], volumes=2, dev=2)
    runs = repulsion.read(tmp_path / "runs.jsonl")
    assert [run["arm"] for run in runs] == ["svgd", "ensemble", "by_predictions"]
    assert [record["step"] for record in runs[0]["dev"]] == [1, 2, 3, 4]
    assert runs[0]["terms"] == runs[1]["terms"]  # the first step sees the same weights and the same batch
    study(tiny, data, tmp_path, arms=["svgd"], seeds=[100], volumes=2, dev=2)
    study(tiny, data, tmp_path, arms=["svgd"], seeds=[100], volumes=2, dev=3)  # there are but two
    assert len(repulsion.read(tmp_path / "runs.jsonl")) == 3
    draw(runs, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 0
    assert table(runs).count("\n") == 2 + 3
    study(tiny.model_copy(update={"steps": 8}), data, tmp_path, arms=["svgd"], seeds=[101], volumes=2, dev=2)
    runs = repulsion.read(tmp_path / "runs.jsonl")
    assert "| tiny, 4 steps, 2 volumes | svgd | 1 |" in table(runs)
    assert "| tiny, 8 steps, 2 volumes | svgd | 1 |" in table(runs)
    draw(runs, tmp_path / "figure.png")


def test_another_network_or_number_of_volumes_to_measure_on_is_another_run(
    tiny: Task, data: Path, tmp_path: Path
) -> None:
    arguments = {**tiny.network.arguments, "channels": [4, 6]}
    other = tiny.model_copy(update={"network": tiny.network.model_copy(update={"arguments": arguments})})
    for task, dev in ((tiny, 1), (tiny, 2), (other, 2), (other, 2)):
        study(task, data, tmp_path, arms=["ensemble"], seeds=[100], volumes=1, dev=dev)
    runs = repulsion.read(tmp_path / "runs.jsonl")
    assert [(run["dev_volumes"], run["network"]["channels"]) for run in runs] == [(1, [4, 8]), (2, [4, 8]), (2, [4, 6])]


def test_an_unknown_arm_is_refused(tiny: Task, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no arm 'svg'"):
        study(tiny, data, tmp_path, arms=["svg"], seeds=[100])
