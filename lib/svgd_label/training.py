"""Training: the one engine, a MONAI trainer whose iteration runs every particle and then takes one SVGD step."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import TerminateOnNan
from monai.data import Dataset, ThreadDataLoader, list_data_collate
from monai.engines import SupervisedTrainer
from monai.handlers import LrScheduleHandler, TensorBoardStatsHandler
from monai.transforms import Compose
from monai.utils import CommonKeys as Keys
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import RandomSampler
from torch.utils.tensorboard import SummaryWriter

from svgd_label.errors import UserError
from svgd_label.images import ImageError
from svgd_label.inference import evaluate
from svgd_label.iteration import new_iteration, new_optimizer
from svgd_label.likelihood import dice_log_likelihood
from svgd_label.svgd import Committee
from svgd_label.tasks import Task
from svgd_label.tasks.transforms import prepare_case, training_transforms

logger = logging.getLogger(__name__)

PARTS = 5
"""A training is reported, and the validation cases are segmented, after each of so many parts."""


class TrainingError(UserError):
    """A training that cannot start; the sentence says why."""


@dataclass(frozen=True)
class Case:
    """One labelled image: files, and how often it stands in the training list."""

    id: str
    image: str
    label: str
    frequency: int = 1


@dataclass(frozen=True)
class Progress:
    """Where a training stands."""

    step: int
    steps: int
    part: int
    parts: int
    loss: float
    """Mean over particles of minus the log-likelihood of the last batch."""
    distance: float
    """Mean distance between particles in weight space."""
    validation_dice: tuple[float | None, ...] | None
    """Per structure, mean over the validation cases that have it, at the end of the last part; None without any."""
    seconds_left: float


@dataclass
class TrainingResult:
    """What a training did. ``unusable`` maps the ids of cases that were passed over to the reason, ``away`` names those
    whose files could not be read at that moment."""

    steps: int = 0
    seconds: float = 0.0
    loss: float = float("nan")
    distance: float = 0.0
    validation_dice: tuple[float | None, ...] | None = None
    unusable: dict[str, str] = field(default_factory=dict)
    away: list[str] = field(default_factory=list)
    stopped_early: bool = False


def train(
    task: Task,
    cases: Sequence[Case],
    committee: Committee,
    *,
    seed: int,
    validation: Sequence[Case] = (),
    on_progress: Callable[[Progress], None] | None = None,
    max_minutes: float | None = None,
    log_folder: Path | None = None,
    attach: Callable[[Engine], None] | None = None,
) -> TrainingResult:
    """Trains a committee in place for ``task.steps`` steps of ``task.batch`` windows.

    A case stands ``frequency`` times in the training list; a case that cannot be used is passed over and named.
    The committee is the one at the end: validation is reported, it chooses nothing.

    Args:
        committee: on the device it shall be trained on.
        seed: of the order of cases and of all random transforms.
        on_progress: called after every step's report, about once a second, and at the end of each part.
        max_minutes: a safety stop, logged when it strikes.
        log_folder: where TensorBoard events go.
        attach: gets the ignite engine before it runs, to add further handlers.

    Raises:
        TrainingError: no case can be used, or the weights are no longer finite.
    """
    result = TrainingResult()
    samples: list[dict[str, torch.Tensor]] = []
    for case in cases:
        if (sample := _prepare(task, case, result)) is not None:
            samples += [sample] * case.frequency
    if not samples:
        raise TrainingError("there is no labelled image to train on: save a label first")
    validation = [case for case in validation if _prepare(task, case, result) is not None]
    device = next(committee.parameters()).device
    # A permutation of the list after another, until every step has its batch.
    sampler = RandomSampler(samples, num_samples=task.steps * task.batch, generator=torch.Generator().manual_seed(seed))
    loader = ThreadDataLoader(
        Dataset(samples, Compose([_OneCore(), *training_transforms(task, device=device).transforms])),
        buffer_size=2,
        batch_size=task.batch,
        sampler=sampler,
        num_workers=0,
        collate_fn=list_data_collate,
        # MONAI's loader seeds the random transforms from it, and would take torch's global one.
        generator=torch.Generator().manual_seed(seed),
    )
    optimizer = new_optimizer(task, committee)
    trainer = SupervisedTrainer(
        device=device,
        max_epochs=1,
        epoch_length=task.steps,
        train_data_loader=loader,
        network=committee,
        optimizer=optimizer,
        loss_function=lambda logits, labels: (
            -dice_log_likelihood(logits, labels, form=task.likelihood, temperature=task.temperature)
        ),
        iteration_update=new_iteration(task, committee),
    )
    cores = torch.get_num_threads()
    trainer.add_event_handler(Events.GET_BATCH_COMPLETED(once=1), lambda: torch.set_num_threads(cores))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, TerminateOnNan())
    reporter = _Reporter(task, committee, validation, result, on_progress, max_minutes)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, reporter)
    if task.schedule == "cosine":
        schedule = CosineAnnealingLR(optimizer, T_max=task.steps)
        LrScheduleHandler(schedule, print_lr=False, epoch_level=False).attach(trainer)  # type: ignore[arg-type]
    if log_folder is not None:
        events = SummaryWriter(str(log_folder))
        TensorBoardStatsHandler(
            summary_writer=events, tag_name="loss", output_transform=lambda output: output[Keys.LOSS]
        ).attach(trainer)
        reporter.events = events
    if attach is not None:
        attach(trainer)
    try:
        with torch.random.fork_rng():  # for networks with dropout, which draws from torch's own generator
            torch.manual_seed(seed)
            trainer.run()
    finally:
        if reporter.events is not None:
            reporter.events.close()
    if not torch.isfinite(committee.matrix()).all():
        raise TrainingError(
            f"the training diverged after {result.steps} steps and was thrown away; take a smaller learning_rate"
        )
    return result


class _OneCore:
    """The loader's first transform: from then on its thread, which has OpenMP threads of its own, uses one core.

    With more than one, they and the network's were in each other's way: a step of five particles on two cores took
    nearly twice as long. Torch's setting is the calling thread's, but also what later threads begin with: whoever
    starts the loader sets it back once the first sample is there.
    """

    def __init__(self) -> None:
        self.is_set = False

    def __call__(self, sample: Any) -> Any:
        if not self.is_set:
            torch.set_num_threads(1)
            self.is_set = True
        return sample


def _prepare(task: Task, case: Case, result: TrainingResult) -> dict[str, torch.Tensor] | None:
    """A case on the task's grid; None, and its reason in the result, for one that cannot be used."""
    try:
        return prepare_case(task, case.image, case.label)
    except ImageError as error:
        logger.warning("passed over in training: %s", error)
        if Path(case.label).is_file():  # a label that was deleted meanwhile says nothing of its image
            result.unusable[case.id] = str(error)
        if error.passing:
            result.away.append(case.id)
        return None


class _Reporter:
    """Progress, validation at the end of each part, and the safety stop, as one ignite handler."""

    def __init__(
        self,
        task: Task,
        committee: Committee,
        validation: Sequence[Case],
        result: TrainingResult,
        on_progress: Callable[[Progress], None] | None,
        max_minutes: float | None,
    ) -> None:
        self.task, self.committee, self.validation, self.result = task, committee, validation, result
        self.on_progress, self.max_minutes = on_progress, max_minutes
        self.events: SummaryWriter | None = None
        self.parts = [-(-task.steps * part // PARTS) for part in range(1, PARTS + 1)]
        self.started = self.reported = time.monotonic()

    def __call__(self, engine: Engine) -> None:
        now = time.monotonic()
        output: Any = engine.state.output
        self.result.steps = engine.state.iteration
        self.result.seconds = now - self.started
        self.result.loss = float(output[Keys.LOSS])
        if self.max_minutes is not None and now - self.started > self.max_minutes * 60:
            logger.warning(
                "training stopped after %d of %d steps: the limit of %g minutes is reached",
                self.result.steps, self.task.steps, self.max_minutes,
            )  # fmt: skip
            self.result.stopped_early = True
            engine.terminate()
        if self.result.steps in self.parts or self.result.stopped_early:
            self._end_part()
        elif now - self.reported >= 1:
            self._report()

    def _end_part(self) -> None:
        self.result.validation_dice = self._validate()
        self._report()
        pairs = zip(self.task.labels, self.result.validation_dice or (), strict=False)
        dice = [(name, value) for name, value in pairs if value is not None]
        logger.info(
            "step %d of %d: loss %.4f, distance between particles %.3f%s",
            self.result.steps, self.task.steps, self.result.loss, self.result.distance,
            ", validation Dice " + ", ".join(f"{name} {value:.3f}" for name, value in dice) if dice else "",
        )  # fmt: skip
        if self.events is not None:
            self.events.add_scalar("distance_between_particles", self.result.distance, self.result.steps)
            for name, value in dice:
                self.events.add_scalar(f"validation_dice/{name}", value, self.result.steps)

    def _validate(self) -> tuple[float | None, ...] | None:
        scores = []
        for case in self.validation:
            try:
                scores += evaluate(self.task, self.committee, [(case.image, case.label)])
            except ImageError as error:  # it could be used at the start: the file has gone or changed meanwhile
                logger.warning("passed over in validation: %s", error)
        means = [[dice for dice in dices if not math.isnan(dice)] for dices in zip(*scores, strict=True)]
        return tuple(sum(dices) / len(dices) if dices else None for dices in means) or None

    def _report(self) -> None:
        self.reported = time.monotonic()
        self.result.distance = self.committee.mean_distance()
        if self.on_progress is None:
            return
        step, steps = self.result.steps, self.task.steps
        self.on_progress(
            Progress(
                step=step,
                steps=steps,
                part=sum(end <= step for end in self.parts),
                parts=PARTS,
                loss=self.result.loss,
                distance=self.result.distance,
                validation_dice=self.result.validation_dice,
                seconds_left=(self.reported - self.started) / step * (steps - step),
            )
        )
