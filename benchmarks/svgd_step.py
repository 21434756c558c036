"""One SVGD step with M particles against M plain training steps of one network, on the same batches.

Ours is the training engine's own iteration: forward and backward of every particle, kernel, velocity, Adam. Theirs is
what anyone would write for one network: forward, the same loss, backward, Adam; M of them, each on its own network.
"""

from types import SimpleNamespace

import torch

from benchmarks.common import Measurement, paired
from svgd_label.checkpoint import new_committee
from svgd_label.device import default_device, training_autocast
from svgd_label.likelihood import dice_log_likelihood
from svgd_label.svgd import SVGD
from svgd_label.tasks import load_task
from svgd_label.training import svgd_iteration

TARGET = 1.10


def run(*, quick: bool) -> Measurement:
    """The hippocampus task as it is trained: its network, window, batch and number of particles."""
    task = load_task("hippocampus")
    device = default_device()
    generator = torch.Generator().manual_seed(0)
    batch = {
        "image": torch.rand(task.batch, 1, *task.window, generator=generator),
        "label": torch.randint(0, task.classes, (task.batch, 1, *task.window), generator=generator),
    }

    committee = new_committee(task, seed=0).to(device)
    engine = SimpleNamespace(
        state=SimpleNamespace(device=device),
        network=committee,
        optimizer=SVGD(torch.optim.Adam(committee.parameters(), lr=task.learning_rate), committee.trainable()),
        loss_function=lambda logits, labels: -dice_log_likelihood(logits, labels),
    )

    networks = list(new_committee(task, seed=1).to(device).particles)
    optimizers = [torch.optim.Adam(network.parameters(), lr=task.learning_rate) for network in networks]

    def plain_steps() -> None:
        for network, optimizer in zip(networks, optimizers, strict=True):
            images = batch["image"].to(device, memory_format=torch.channels_last_3d)
            labels = batch["label"].to(device)
            optimizer.zero_grad(set_to_none=True)
            with training_autocast(device):
                logits = network(images)
            loss = -dice_log_likelihood(logits, labels)
            loss.backward()
            optimizer.step()
            loss.item()

    ratio, ours, theirs = paired(lambda: svgd_iteration(engine, batch), plain_steps, pairs=5 if quick else 30)
    return Measurement("svgd_step", ratio, TARGET, ours, theirs, f"seconds for {task.particles} particles")
