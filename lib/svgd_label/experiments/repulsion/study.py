"""How hard SVGD's repulsion and its mixed drive pull on a segmentation committee, against a plain ensemble."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu, spearmanr
from torch import Tensor

from svgd_label import hardware
from svgd_label.checkpoint import new_committee
from svgd_label.device import default_device, training_autocast
from svgd_label.errors import UserError
from svgd_label.experiments.dataset import Dataset
from svgd_label.inference import dice, sliding_window
from svgd_label.svgd import Committee, median_bandwidth, pairwise_distances, phi
from svgd_label.svgd.committee import flatten
from svgd_label.tasks import Task
from svgd_label.tasks.transforms import prepare_case
from svgd_label.training import train
from svgd_label.uncertainty import entropy

logger = logging.getLogger(__name__)

NO_INTERACTION = 1e-6
"""At such a multiple the kernel of different particles is 0: phi is a particle's own gradient / M."""
MARGIN = 4
"""Calibration and error detection look at the voxels within a box of so many voxels around the reference."""
BINS = 15
RECORDED = 10
"""The terms of phi are recorded at every so many steps, the committee is measured on dev after each quarter."""


@dataclass(frozen=True)
class Step:
    """What an arm may use to make its own velocity."""

    particles: Tensor
    """(M, P)."""
    scores: Tensor
    """(M, P)."""
    committee: Committee
    images: Tensor
    """(B, 1, *window), the batch."""
    done: float
    """Which part of the training is over, in [0, 1)."""


def repulsion(particles: Tensor) -> Tensor:
    """The second term of phi at the median bandwidth, (M, P)."""
    return phi(particles, torch.zeros_like(particles))


def own_gradient(step: Step) -> Tensor:
    """The drive of an ensemble with the repulsion of SVGD."""
    return step.scores / len(step.scores) + repulsion(step.particles)


def annealed(step: Step) -> Tensor:
    """SVGD at the start, a plain ensemble at the end, linear in between."""
    return (1 - step.done) * phi(step.particles, step.scores) + step.done * step.scores / len(step.scores)


def by_layer(step: Step) -> Tensor:
    """A kernel of its own, with a median bandwidth of its own, for every weight and bias tensor."""
    sizes = [parameter.numel() for parameter in step.committee.trainable()[0]]
    blocks = zip(step.particles.split(sizes, dim=1), step.scores.split(sizes, dim=1), strict=True)
    return torch.cat([phi(block.contiguous(), score.contiguous()) for block, score in blocks], dim=1)


def by_predictions(step: Step) -> Tensor:
    """Own gradients, and a repulsion between the particles' softmax outputs on the batch, taken back to the weights.

    After D'Angelo and Fortuin, "Repulsive Deep Ensembles are Bayesian", NeurIPS 2021, arXiv:2106.11642, with SVGD's
    repulsion in place of their normalised one.
    """
    velocity = step.scores / len(step.scores)
    with training_autocast(step.images.device):
        with torch.no_grad():
            force = repulsion(step.committee.logits(step.images).float().softmax(dim=2).flatten(1))
        for number, parameters in enumerate(step.committee.trainable()):
            outputs = step.committee.particles[number](step.images).float().softmax(dim=1).flatten()
            velocity[number] += flatten(torch.autograd.grad(outputs, parameters, grad_outputs=force[number]))
    return velocity


@dataclass(frozen=True)
class Arm:
    """One way in which particles act on each other."""

    meaning: str
    temperature: float = 1.0
    bandwidth: float | None = None
    """A fixed one, as a multiple of the initial particles' median bandwidth; None takes the median at every step."""
    velocity: Callable[[Step], Tensor] | None = None
    """An own velocity, (M, P), in place of phi."""

    def task(self, task: Task, committee: Committee) -> Task:
        """The task as this arm trains a fresh committee for it."""
        factor = self.bandwidth if self.velocity is None else NO_INTERACTION
        bandwidth = None if factor is None else factor * float(median_bandwidth(committee.matrix()))
        return task.model_copy(update={"temperature": self.temperature, "bandwidth": bandwidth})


ARMS = {
    "svgd": Arm("SVGD at T = 1, median bandwidth"),
    "ensemble": Arm("plain ensemble: every particle its own gradient", bandwidth=NO_INTERACTION),
    "own_gradient": Arm("own gradient and repulsion, no mixed drive", velocity=own_gradient),
    "drive_only": Arm("mixed drive, no repulsion to speak of (T = 1e-6)", temperature=1e-6),
    "scaled": Arm("likelihood times 20, the number of volumes", temperature=1 / 20),
    "annealed": Arm("SVGD that fades linearly into an ensemble", velocity=annealed),
    "by_layer": Arm("one kernel for each weight tensor", velocity=by_layer),
    "by_predictions": Arm("own gradient and repulsion between predictions", velocity=by_predictions),
}


def terms(particles: Tensor, scores: Tensor) -> dict[str, float]:
    """What phi consists of, at the median bandwidth, averaged over particles.

    Args:
        particles: (M, P).
        scores: (M, P).

    Returns:
        Norms of the ``own`` part of the drive (score_i / M), the ``others``' part (1/M sum_{j != i} r_ij score_j) and
        the ``repulsion``; ``repelled``, the share of parameters where the repulsion outweighs the drive; the mean
        ``cosine`` between scores and the mean ``distance`` of different particles.
    """
    away = repulsion(particles)
    drive = phi(particles, scores) - away
    own = scores / len(scores)
    directions = torch.nn.functional.normalize(scores, dim=1)
    pairs = torch.triu_indices(len(scores), len(scores), offset=1)
    return {
        "own": own.norm(dim=1).mean().item(),
        "others": (drive - own).norm(dim=1).mean().item(),
        "repulsion": away.norm(dim=1).mean().item(),
        "repelled": (away.abs() > drive.abs()).float().mean().item(),
        "cosine": (directions @ directions.T)[pairs[0], pairs[1]].mean().item(),
        "distance": pairwise_distances(particles).mean().item(),
    }


def calibration(probabilities: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    """Expected calibration error, Brier score and negative log-likelihood of voxels.

    Args:
        probabilities: (N, C).
        labels: (N,), the true classes.

    Returns:
        ``ece`` over 15 equal bins of the largest probability (Guo et al. 2017, equation 3), ``brier`` (squared
        error summed over classes) and ``nll`` (nats, probabilities from 1e-6).
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=BINS)
    true = probabilities[np.arange(len(labels)), labels]
    squares = (probabilities**2).sum(axis=1) - 2 * true + 1
    return {
        "ece": float(np.abs(gaps).sum() / len(labels)),
        "brier": float(squares.mean()),
        "nll": float(-np.log(np.maximum(true, 1e-6)).mean()),
    }


def auroc(scores: NDArray[Any], positive: NDArray[Any]) -> float:
    """Probability that a positive has a larger score than a negative one, ties counting half; NaN without either."""
    if positive.all() or not positive.any():
        return float("nan")
    ranked = mannwhitneyu(scores[positive], scores[~positive], method="asymptotic")
    return float(ranked.statistic / (positive.sum() * (~positive).sum()))


@torch.inference_mode()
def measure(task: Task, committee: Committee, cases: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """What a committee is worth on prepared cases.

    Returns:
        ``dice`` of the committee and ``particle_dice`` of its particles, means over structures and cases;
        ``disagreement``, mean 1 - Dice between different particles' segmentations; ``jsd`` of the particles and
        :func:`calibration` over the voxels near the reference; there ``auroc`` of the entropy for wrong voxels; and
        ``rank``, the Spearman correlation over cases of mean entropy with 1 - Dice.
    """

    def probabilities(particle: torch.nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: particle(x.contiguous(memory_format=torch.channels_last_3d)).softmax(dim=1)

    committee.eval()
    device = next(committee.parameters()).device
    found: dict[str, list[float]] = {"dice": [], "particle_dice": [], "disagreement": [], "image_entropy": []}
    voxels: dict[str, list[NDArray[Any]]] = {"mean": [], "label": [], "entropy": [], "expected": []}
    for case in cases:
        image, label = case["image"].to(device), case["label"]
        particles = torch.stack([sliding_window(task, probabilities(p), image).cpu() for p in committee.particles])
        mean, reference = particles.mean(dim=0), label[0].numpy()
        maps = [segmented.to(torch.uint8).numpy() for segmented in particles.argmax(dim=1)]
        uncertainty = entropy(mean, dim=0)
        found["dice"].append(float(np.nanmean(dice(task, mean.argmax(dim=0).to(torch.uint8).numpy(), reference))))
        found["particle_dice"] += [float(np.nanmean(dice(task, segmented, reference))) for segmented in maps]
        found["disagreement"] += [_disagreement(task, a, b) for a, b in combinations(maps, 2)]
        found["image_entropy"].append(float(uncertainty.mean()))
        near = torch.nn.functional.max_pool3d((label > 0).float(), 2 * MARGIN + 1, stride=1, padding=MARGIN)[0] > 0
        voxels["mean"].append(mean[:, near].T.numpy())
        voxels["label"].append(label[0][near].long().numpy())
        voxels["entropy"].append(uncertainty[near].numpy())
        voxels["expected"].append(entropy(particles, dim=1).mean(dim=0)[near].numpy())
    joined = {name: np.concatenate(parts).astype(np.float64) for name, parts in voxels.items()}
    labels = joined["label"].astype(int)
    wrong = joined["mean"].argmax(axis=1) != labels
    return {
        **{name: float(np.mean(found[name])) for name in ("dice", "particle_dice", "disagreement")},
        "jsd": float((joined["entropy"] - joined["expected"]).mean()),
        **calibration(joined["mean"], labels),
        "auroc": auroc(joined["entropy"], wrong),
        "rank": float(spearmanr(found["image_entropy"], 1 - np.array(found["dice"])).statistic),
    }


def _disagreement(task: Task, a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """1 - mean Dice; where b holds no structure, which has no Dice, 1, or 0 where a holds none either."""
    return 1 - float(np.nanmean(dice(task, a, b))) if b.any() else float(a.any())


class Observer:
    """Stands before the optimizer's step: records the terms, and puts an arm's own velocity in the gradients' place."""

    def __init__(self, arm: Arm, committee: Committee, steps: int) -> None:
        self.arm, self.committee, self.steps = arm, committee, steps
        self.recorded: list[dict[str, float]] = []

    def attach(self, engine: Any) -> None:
        """To be called by the training before it runs."""
        self.engine = engine
        self.engine.optimizer.register_step_pre_hook(lambda *_: self())

    @torch.no_grad()
    def __call__(self) -> None:
        """Before step number ``engine.state.iteration``, counted from 1."""
        iteration = self.engine.state.iteration
        record = iteration % RECORDED == 0 or iteration == 1
        if not (record or self.arm.velocity):
            return
        trainable = self.committee.trainable()
        particles = self.committee.matrix()
        scores = -torch.stack([flatten([g for p in row if (g := p.grad) is not None]) for row in trainable])
        if record:
            self.recorded.append({"step": iteration, **terms(particles, scores)})
        if self.arm.velocity is None:
            return
        images = self.engine.state.batch["image"].to(particles.device, memory_format=torch.channels_last_3d)
        step = Step(particles, scores, self.committee, images, (iteration - 1) / self.steps)
        with torch.enable_grad():
            velocity = self.arm.velocity(step).detach()
        if record:
            self.recorded[-1]["interaction"] = (velocity - scores / len(scores)).norm(dim=1).mean().item()
        for row, values in zip(trainable, velocity, strict=True):
            for parameter, value in zip(row, values.split([p.numel() for p in row]), strict=True):
                assert parameter.grad is not None
                # The optimizer runs without interaction: it divides by M.
                parameter.grad.copy_(value.view(parameter.shape) * -len(velocity))


def run_arm(name: str, task: Task, dataset: Dataset, *, volumes: int, dev: int, seed: int) -> dict[str, Any]:
    """Trains one committee from the seed's initial weights on the seed's volumes and batches, which arms share.

    Returns:
        What is written for one run: ``terms`` and ``dev``, lists over training steps, with where they come from.
    """
    arm = ARMS[name]
    chosen = np.random.default_rng(seed).permutation(len(dataset.splits["pool"]))[:volumes]
    cases = [dataset.splits["pool"][number] for number in chosen]
    held = [prepare_case(task, case.image, case.label) for case in dataset.splits["dev"][:dev]]
    committee = new_committee(task, seed=seed).to(default_device())
    task = arm.task(task, committee)
    observer = Observer(arm, committee, task.steps)
    measured: list[dict[str, float]] = []
    quarters = {task.steps * part // 4 for part in range(1, 5)}

    def attach(engine: Engine) -> None:
        observer.attach(engine)

        def quarter() -> None:
            if engine.state.iteration in quarters:
                measured.append({"step": engine.state.iteration, **measure(task, committee, held)})

        engine.add_event_handler(Events.ITERATION_COMPLETED, quarter)

    started = time.monotonic()
    train(task, cases, committee, seed=seed, attach=attach)
    return {
        "task": task.name,
        "arm": name,
        "meaning": arm.meaning,
        "network": task.network.arguments,
        "parameters": committee.matrix().shape[1],
        "seed": seed,
        "steps": task.steps,
        "volumes": len(cases),
        "dev_volumes": len(held),
        "temperature": task.temperature,
        "bandwidth": task.bandwidth,
        "terms": observer.recorded,
        "dev": measured,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "hardware": hardware.describe(),
    }


def study(
    task: Task,
    data: Path,
    folder: Path,
    *,
    arms: Sequence[str] | None = None,
    seeds: Sequence[int],
    volumes: int = 20,
    dev: int = 20,
) -> None:
    """Runs the arms from every seed and appends one JSON line a run to runs.jsonl; what is there is not run again.

    A run is there where task, network, arm, seed, steps and numbers of volumes are the same.

    Raises:
        UserError: there is no such arm.
    """
    if unknown := set(arms or ()) - set(ARMS):
        raise UserError(f"there is no arm {sorted(unknown)[0]!r}; known are {', '.join(ARMS)}")
    dataset = Dataset.read(data)
    runs = folder / "runs.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    same = {
        "task": task.name,
        "network": task.network.arguments,
        "steps": task.steps,
        "volumes": min(volumes, len(dataset.splits["pool"])),
        "dev_volumes": min(dev, len(dataset.splits["dev"])),
    }
    for seed in seeds:
        for name in arms or ARMS:
            key = {**same, "arm": name, "seed": seed}
            if any(key == {field: run[field] for field in key} for run in read(runs)):
                continue
            run = run_arm(name, task, dataset, volumes=volumes, dev=dev, seed=seed)
            with runs.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_rounded(run)) + "\n")
            logger.info("%s, seed %d: %s", name, seed, run["dev"][-1])


def read(runs: Path) -> list[dict[str, Any]]:
    """The finished runs of a file, none where there is no file."""
    return [json.loads(line) for line in runs.read_text(encoding="utf-8").splitlines()] if runs.is_file() else []


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
