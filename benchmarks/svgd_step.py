"""One SVGD step with M particles against M plain training steps of one network, on the same batches; time and memory.

Ours is the training engine's own iteration: forward and backward of every particle, kernel, velocity, Adam. Theirs is
what anyone would write for one network: forward, the same loss, backward, Adam; M of them, each on its own network.
Memory is the peak of a fresh process that takes a few steps, against the same with one particle. It grows with M by the
weights, their gradients, Adam's two moments and what SVGD gathers; on a CPU the activations are those of one particle.
On a GPU both are measured there, memory as what the process holds in the end, CUDA's own included, and the figures
have names of their own.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch

from benchmarks.common import RESULTS, Measurement, paired, peaks_gib, peaks_gib_on_gpu
from svgd_label.checkpoint import new_committee
from svgd_label.device import default_device, training_autocast
from svgd_label.iteration import new_iteration, new_optimizer
from svgd_label.likelihood import dice_log_likelihood
from svgd_label.tasks import Task, load_task

TARGET = 1.05
MEMORY_TARGET = 1.3
SIZES = (1, 2, 5, 10, 20)


def run(*, quick: bool) -> list[Measurement]:
    """The hippocampus task as it is trained, and with other numbers of particles; quickly two only."""
    size = 2 if quick else load_task("hippocampus").particles
    sizes = (1, size) if quick else SIZES
    on_gpu = default_device().type == "cuda"
    measure, where = (peaks_gib_on_gpu, "_cuda") if on_gpu else (peaks_gib, "")
    memory = dict(zip(sizes, measure(_code(number) for number in sizes), strict=True))
    times = {size: _time(size, pairs=3 if quick else 100)}
    details = {}
    if not quick:
        times |= {number: _time(number, pairs=10) for number in SIZES if number != size}
        _draw(times, memory, RESULTS / f"svgd_step{where}.png")
        details = {f"ratio_with_{number}": round(times[number][0], 3) for number in SIZES}
    peaks = {f"gib_with_{number}": round(peak, 3) for number, peak in memory.items()}
    ratio, ours, theirs = times[size]
    grown, unit = memory[size] / memory[1], f"GiB, {size} particles against 1"
    return [
        Measurement(f"svgd_step{where}", ratio, TARGET, ours, theirs, f"seconds for {size} particles", details),
        Measurement(f"svgd_memory{where}", grown, MEMORY_TARGET, memory[size], memory[1], unit, peaks),
    ]


def _time(size: int, *, pairs: int) -> tuple[float, float, float]:
    ours, theirs = svgd_step(size), _plain_steps(size)
    return paired(ours, theirs, pairs=pairs)


def _code(size: int) -> str:
    keep = "from svgd_label.process import keep_freed_memory; keep_freed_memory()"
    return f"{keep}; from benchmarks.svgd_step import svgd_step; step = svgd_step({size}); [step() for _ in range(5)]"


def _task_and_batch(size: int) -> tuple[Task, dict[str, torch.Tensor]]:
    task = load_task("hippocampus").model_copy(update={"particles": size})
    generator = torch.Generator().manual_seed(0)
    return task, {
        "image": torch.rand(task.batch, 1, *task.window, generator=generator),
        "label": torch.randint(0, task.classes, (task.batch, 1, *task.window), generator=generator),
    }


def svgd_step(size: int) -> Callable[[], object]:
    """A training step of a committee of so many particles."""
    task, batch = _task_and_batch(size)
    device = default_device()
    committee = new_committee(task, seed=0).to(device)
    engine = SimpleNamespace(
        state=SimpleNamespace(device=device),
        network=committee,
        optimizer=new_optimizer(task, committee),
        loss_function=lambda logits, labels: -dice_log_likelihood(logits, labels),
    )
    iteration = new_iteration(task, committee)
    return lambda: iteration(engine, batch)


def _plain_steps(size: int) -> Callable[[], None]:
    task, batch = _task_and_batch(size)
    device = default_device()
    networks = list(new_committee(task, seed=1).to(device).particles)
    optimizers = [torch.optim.Adam(network.parameters(), lr=task.learning_rate, fused=True) for network in networks]

    def steps() -> None:
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

    return steps


def _draw(times: dict[int, tuple[float, float, float]], memory: dict[int, float], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(SIZES, [times[size][1] for size in SIZES], "o-", label="one SVGD step of M particles")
    left.plot(SIZES, [times[size][2] for size in SIZES], "s--", label="M plain steps")
    left.set(xlabel="particles M", ylabel="seconds", ylim=(0, None))
    left.legend()
    right.plot(SIZES, [memory[size] for size in SIZES], "o-", label="peak of a training process")
    right.axhline(MEMORY_TARGET * memory[1], color="grey", linestyle=":", label="1.3 times that of one particle")
    right.set(xlabel="particles M", ylabel="GiB", ylim=(0, None))
    right.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
