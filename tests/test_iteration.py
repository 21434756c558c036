"""One training iteration: on a GPU the captured one does what the plain one does."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from svgd_label.checkpoint import new_committee
from svgd_label.iteration import WARM_UP, CapturedIteration, new_iteration, new_optimizer, svgd_iteration
from svgd_label.likelihood import dice_log_likelihood
from svgd_label.svgd import Committee
from svgd_label.tasks import Task

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
GPU = torch.device("cuda", 0)
STEPS = WARM_UP + 5


def engine(task: Task, committee: Committee, device: torch.device) -> Any:
    return SimpleNamespace(
        state=SimpleNamespace(device=device),
        network=committee,
        optimizer=new_optimizer(task, committee),
        loss_function=lambda logits, labels: -dice_log_likelihood(logits, labels),
    )


def batches(task: Task) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(task.batch, 1, *task.window, generator=generator) for _ in range(STEPS)]
    # Each batch has another share of foreground, so that the losses tell the batches apart.
    return [
        {"image": image, "label": (image > (number + 1) / (STEPS + 1)).to(torch.uint8)}
        for number, image in enumerate(images)
    ]


def losses(task: Task, iteration: Any, device: torch.device) -> tuple[list[float], float]:
    committee = new_committee(task, seed=0).to(device)
    running = engine(task, committee, device)
    schedule = CosineAnnealingLR(running.optimizer, T_max=STEPS)
    found = []
    for batch in batches(task):
        found.append(iteration(running, batch)["loss"])
        schedule.step()
    return found, float(running.optimizer.param_groups[0]["lr"])


def test_a_cpu_takes_the_plain_iteration_whose_loss_is_the_particles_mean(tiny: Task) -> None:
    committee = new_committee(tiny, seed=0)
    assert new_iteration(tiny, committee) is svgd_iteration
    batch = batches(tiny)[0]
    with torch.no_grad():
        alone = [
            float(-dice_log_likelihood(particle(batch["image"]), batch["label"])) for particle in committee.particles
        ]
    loss = svgd_iteration(engine(tiny, committee, torch.device("cpu")), batch)["loss"]
    assert loss == pytest.approx(sum(alone) / len(alone), rel=1e-5)


@NEEDS_GPU
def test_replayed_iterations_see_their_own_batch_and_the_schedules_rate(tiny: Task) -> None:
    expected, rate = losses(tiny, svgd_iteration, GPU)
    iteration = CapturedIteration()
    found, captured_rate = losses(tiny, iteration, GPU)
    assert iteration._graph is not None
    assert found == pytest.approx(expected, rel=0.02)
    assert rate == pytest.approx(0, abs=1e-6) and captured_rate == pytest.approx(0, abs=1e-6)


@NEEDS_GPU
def test_a_committee_on_a_gpu_gets_the_captured_iteration_where_its_optimizer_allows(tiny: Task) -> None:
    committee = new_committee(tiny, seed=0).to(GPU)
    assert isinstance(new_iteration(tiny, committee), CapturedIteration)
    assert new_iteration(tiny.model_copy(update={"optimizer": "SGD"}), committee) is svgd_iteration


@NEEDS_GPU
def test_hooks_before_the_step_run_at_every_iteration(tiny: Task) -> None:
    committee = new_committee(tiny, seed=0).to(GPU)
    running, iteration, seen = engine(tiny, committee, GPU), CapturedIteration(), []
    running.optimizer.register_step_pre_hook(lambda *_: seen.append(1))
    for batch in batches(tiny):
        iteration(running, batch)
    assert len(seen) == STEPS


@NEEDS_GPU
def test_a_network_that_looks_at_values_is_trained_without_and_the_log_says_so(
    tiny: Task, caplog: pytest.LogCaptureFixture
) -> None:
    class Looking(torch.nn.Module):
        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            answer: torch.Tensor = self.network(x)
            return answer * float(answer.isfinite().all())

    committee = Committee([Looking(particle) for particle in new_committee(tiny, seed=0).particles]).to(GPU)
    running, iteration = engine(tiny, committee, GPU), CapturedIteration()
    before = committee.matrix()
    with caplog.at_level(logging.WARNING):
        found = [iteration(running, batch)["loss"] for batch in batches(tiny)]
    assert iteration._graph is None and "cannot be captured" in caplog.text
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert all(loss == loss for loss in found) and not torch.equal(committee.matrix(), before)
