"""The training engine: what is drawn how often, what is passed over, when it ends, and that a seed repeats it."""

import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.transforms import Compose

from svgd_label.checkpoint import new_committee
from svgd_label.device import training_autocast
from svgd_label.likelihood import dice_log_likelihood
from svgd_label.svgd import phi
from svgd_label.tasks import Task
from svgd_label.tasks.transforms import prepare_case, training_transforms
from svgd_label.training import Case, Progress, TrainingError, train

from .conftest import blob, save_nifti


def case(folder: Path, name: str, *, shape: tuple[int, int, int] = (12, 14, 13), frequency: int = 1) -> Case:
    image, label = blob(shape, seed=sum(map(ord, name)))
    return Case(
        name,
        str(save_nifti(folder / f"{name}.nii.gz", image)),
        str(save_nifti(folder / "labels" / f"{name}.nii.gz", label)),
        frequency,
    )


def test_an_image_of_frequency_three_is_drawn_three_times_as_often(tmp_path: Path, tiny: Task) -> None:
    task = tiny.model_copy(update={"steps": 20, "batch": 2, "augment": False, "particles": 1})
    cases = [case(tmp_path, "a", frequency=3), case(tmp_path, "b")]
    sums = {round(float(prepare_case(task, c.image, c.label)["image"].sum()), 2): c.id for c in cases}
    drawn: Counter[str] = Counter()

    def attach(engine: Engine) -> None:
        @engine.on(Events.ITERATION_COMPLETED)
        def count(engine: Engine) -> None:
            batch: Any = engine.state.batch
            drawn.update(sums[round(float(image.sum()), 2)] for image in batch["image"])

    train(task, cases, new_committee(task, seed=0), seed=0, attach=attach)
    assert drawn == {"a": 30, "b": 10}


def test_samples_are_made_on_one_core_and_the_network_keeps_its_own(
    tmp_path: Path, tiny: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = set()

    def watch(sample: Any) -> Any:
        made.add(torch.get_num_threads())
        return sample

    def watched(task: Task, *, device: torch.device) -> Compose:
        return Compose([watch, *training_transforms(task, device=device).transforms])

    monkeypatch.setattr("svgd_label.training.training_transforms", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train(tiny, [case(tmp_path, "a")], new_committee(tiny, seed=0), seed=0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert made == {1}


def test_one_seed_gives_one_committee(tmp_path: Path, tiny: Task) -> None:
    cases = [case(tmp_path, "a"), case(tmp_path, "b")]

    def run(seed: int) -> torch.Tensor:
        committee = new_committee(tiny, seed=1)
        train(tiny, cases, committee, seed=seed)
        return committee.matrix()

    first = run(5)
    assert torch.equal(first, run(5))
    assert not torch.equal(first, run(6))


def test_one_seed_gives_one_committee_with_dropout_too(tmp_path: Path, tiny: Task) -> None:
    network = tiny.network.model_copy(update={"arguments": {**tiny.network.arguments, "dropout": 0.2}})
    dropping, cases = tiny.model_copy(update={"network": network}), [case(tmp_path, "a")]
    found = []
    for other in (1, 2):
        committee = new_committee(dropping, seed=1)
        torch.manual_seed(other)
        state = torch.get_rng_state()
        train(dropping, cases, committee, seed=5)
        assert torch.equal(torch.get_rng_state(), state), "what else draws from torch's generator goes on as before"
        found.append(committee.matrix())
    assert torch.equal(*found)


def test_each_step_moves_every_particle_by_phi_of_its_own_gradient_on_the_steps_batch(
    tmp_path: Path, tiny: Task
) -> None:
    task = tiny.model_copy(update={"optimizer": "SGD", "learning_rate": 0.1, "schedule": "constant"})
    committee, by_hand = new_committee(task, seed=1), new_committee(task, seed=1)
    batches: list[Any] = []

    def attach(engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: batches.append(e.state.batch))

    train(task, [case(tmp_path, "a"), case(tmp_path, "b")], committee, seed=0, attach=attach)
    assert len(batches) == task.steps
    for batch in batches:
        scores = []
        for particle in by_hand.particles:
            with training_autocast(torch.device("cpu")):
                logits = particle(batch["image"].contiguous(memory_format=torch.channels_last_3d))
            gradients = torch.autograd.grad(dice_log_likelihood(logits, batch["label"]), list(particle.parameters()))
            scores.append(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        moved = by_hand.matrix() + 0.1 * phi(by_hand.matrix(), torch.stack(scores))
        for particle, vector in zip(by_hand.particles, moved, strict=True):
            parts = vector.split([p.numel() for p in particle.parameters()])
            for parameter, part in zip(particle.parameters(), parts, strict=True):
                parameter.data.copy_(part.view(parameter.shape))
    torch.testing.assert_close(committee.matrix(), by_hand.matrix(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "Adam"},
        {"learning_rate": 0.05},
        {"schedule": "constant"},
        {"likelihood": "log_dice_loss"},
        {"temperature": 0.5},
        {"bandwidth": 50.0},
        {"prior_std": 0.5},
        {"augment": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_hyper_parameter_of_the_task_reaches_the_training(
    tmp_path: Path, tiny: Task, change: dict[str, Any]
) -> None:
    plain = {**tiny.model_dump(), "optimizer": "SGD", "learning_rate": 0.1, "augment": False, "steps": 3}

    def run(**changes: Any) -> torch.Tensor:
        task = Task.model_validate({**plain, **changes})
        committee = new_committee(task, seed=1)
        train(task, [case(tmp_path, "a")], committee, seed=0)
        return committee.matrix()

    assert not torch.allclose(run(), run(**change), rtol=1e-5, atol=1e-7)


def test_the_loss_falls_and_every_particle_moves(tmp_path: Path, tiny: Task) -> None:
    task = tiny.model_copy(update={"steps": 60, "learning_rate": 0.01, "augment": False})
    committee = new_committee(task, seed=0)
    before, losses = committee.matrix(), []
    train(task, [case(tmp_path, "a")], committee, seed=0, on_progress=lambda p: losses.append(p.loss))
    assert losses[-1] < losses[0] / 2
    assert ((committee.matrix() - before).norm(dim=1) > 0).all()


@pytest.mark.parametrize("steps", [1, 3, 7, 10])
def test_a_training_takes_exactly_its_steps_and_ends_at_a_small_learning_rate(
    tmp_path: Path, tiny: Task, steps: int
) -> None:
    task = tiny.model_copy(update={"steps": steps})
    rates: list[float] = []
    reports: list[Progress] = []

    def attach(engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, lambda e: rates.append(e.optimizer.param_groups[0]["lr"]))

    result = train(
        task, [case(tmp_path, "a")], new_committee(task, seed=0), seed=0, on_progress=reports.append, attach=attach
    )
    assert result.steps == reports[-1].step == steps
    assert reports[-1].part == reports[-1].parts
    assert reports[-1].seconds_left == 0
    assert rates == [pytest.approx(0, abs=1e-9)]


def test_a_case_that_cannot_be_used_is_passed_over_and_named(
    tmp_path: Path, tiny: Task, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad, other = (case(tmp_path, name) for name in ("good", "bad", "other"))
    Path(bad.image).write_bytes(Path(bad.image).read_bytes()[:500])
    save_nifti(Path(other.label), np.ones((5, 5, 5), np.uint8))
    with caplog.at_level(logging.WARNING):
        result = train(tiny, [bad, good, other], new_committee(tiny, seed=0), seed=0, validation=[bad])
    assert set(result.unusable) == {"bad", "other"}
    assert "bad.nii.gz" in caplog.text
    assert result.steps == tiny.steps
    assert result.validation_dice is None
    with pytest.raises(TrainingError, match="no labelled image"):
        train(tiny, [bad], new_committee(tiny, seed=0), seed=0)


def test_the_safety_stop_is_logged(tmp_path: Path, tiny: Task, caplog: pytest.LogCaptureFixture) -> None:
    task = tiny.model_copy(update={"steps": 1000})
    result = train(task, [case(tmp_path, "a")], new_committee(task, seed=0), seed=0, max_minutes=1e-4)
    assert result.stopped_early
    assert result.steps < 1000
    assert "the limit of 0.0001 minutes is reached" in caplog.text


def test_validation_is_reported_per_structure_and_events_are_written(tmp_path: Path, tiny: Task) -> None:
    result = train(
        tiny,
        [case(tmp_path, "a")],
        new_committee(tiny, seed=0),
        seed=0,
        validation=[case(tmp_path, "v")],
        log_folder=tmp_path / "events",
    )
    assert result.validation_dice is not None
    assert len(result.validation_dice) == 2
    assert all(0 <= dice <= 1 for dice in result.validation_dice)
    assert len(list((tmp_path / "events").glob("events.out.tfevents.*"))) == 1


@pytest.mark.parametrize("shape", [(10, 12, 9), (16, 16, 16), (30, 20, 25)])
def test_samples_are_windows_whose_label_lies_on_its_image(
    tmp_path: Path, tiny: Task, shape: tuple[int, int, int]
) -> None:
    image, label = blob(shape, 0)
    image = (label * 100 + np.random.default_rng(0).random(shape)).astype(np.float32)  # the image says its label
    paths = save_nifti(tmp_path / "a.nii.gz", image), save_nifti(tmp_path / "l.nii.gz", label)
    prepared = prepare_case(tiny, *map(str, paths))
    transforms = training_transforms(tiny.model_copy(update={"augment": False}))
    transforms.set_random_state(0)
    centred = 0
    for _ in range(40):
        (sample,) = transforms(prepared)
        assert sample["image"].shape == sample["label"].shape == (1, 16, 16, 16)
        for value in (0, 1, 2):
            seen = sample["image"][sample["label"] == value]
            if len(seen):
                assert float(seen.min()) >= value / 2 - 0.02
                assert float(seen.max()) <= value / 2 + 0.02
        centred += bool(sample["label"][0, 8, 8, 8])
    if min(shape) > 16:
        assert 10 <= centred <= 35  # half of the windows are centred on a labelled voxel


def test_augmented_samples_keep_label_values_and_vary(tmp_path: Path, tiny: Task) -> None:
    prepared = prepare_case(tiny, case(tmp_path, "a").image, case(tmp_path, "a").label)
    transforms = training_transforms(tiny)
    transforms.set_random_state(0)
    samples = [transforms(prepared)[0] for _ in range(10)]
    for sample in samples:
        assert set(sample["label"].unique().tolist()) <= {0, 1, 2}
    assert len({round(float(sample["image"].sum()), 3) for sample in samples}) == 10


def test_a_training_that_diverges_is_refused(tmp_path: Path, tiny: Task) -> None:
    committee = new_committee(tiny, seed=0)
    next(committee.parameters()).data.fill_(float("nan"))
    with pytest.raises(TrainingError, match="diverged after 1 steps"):
        train(tiny, [case(tmp_path, "a")], committee, seed=0)


@pytest.mark.parametrize(("value", "shift", "sentence"), [(3, 0.0, "3"), (1, 40.0, "grid|lie|affine|mm")])
def test_a_label_of_other_values_or_in_another_place_is_passed_over(
    tmp_path: Path, tiny: Task, value: int, shift: float, sentence: str
) -> None:
    good, bad = case(tmp_path, "good"), case(tmp_path, "bad")
    label = np.zeros((12, 14, 13), np.uint8)
    label[4:8, 4:8, 4:8] = value
    affine = np.eye(4)
    affine[0, 3] = shift
    save_nifti(Path(bad.label), label, affine)
    result = train(tiny, [good, bad], new_committee(tiny, seed=0), seed=0)
    assert set(result.unusable) == {"bad"}
    assert re.search(sentence, result.unusable["bad"])


def test_a_structure_that_no_validation_label_has_is_left_open(tmp_path: Path, tiny: Task) -> None:
    only_one = case(tmp_path, "v")
    label = np.zeros((12, 14, 13), np.uint8)
    label[4:8, 4:8, 4:8] = 1
    save_nifti(Path(only_one.label), label)
    result = train(tiny, [case(tmp_path, "a")], new_committee(tiny, seed=0), seed=0, validation=[only_one])
    assert result.validation_dice is not None
    assert result.validation_dice[0] is not None
    assert result.validation_dice[1] is None


def test_an_empty_label_is_a_label(tmp_path: Path, tiny: Task) -> None:
    empty = case(tmp_path, "a")
    save_nifti(Path(empty.label), np.zeros((12, 14, 13), np.uint8))
    assert prepare_case(tiny, empty.image, empty.label)["label"].sum() == 0
    assert train(tiny, [empty], new_committee(tiny, seed=0), seed=0).unusable == {}


def test_a_label_that_is_deleted_meanwhile_neither_ends_the_training_nor_blames_its_image(
    tmp_path: Path, tiny: Task, caplog: pytest.LogCaptureFixture
) -> None:
    kept, gone, before = (case(tmp_path, name) for name in ("kept", "gone", "before"))
    Path(before.label).unlink()
    train_result = train(
        tiny,
        [case(tmp_path, "a"), before],
        new_committee(tiny, seed=0),
        seed=0,
        validation=[gone, kept],
        on_progress=lambda _: Path(gone.label).unlink(missing_ok=True),
    )
    assert train_result.steps == tiny.steps
    assert train_result.unusable == {}
    assert train_result.validation_dice is not None
    assert "gone.nii.gz" in caplog.text
