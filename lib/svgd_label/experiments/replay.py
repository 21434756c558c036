"""The replay: active learning over a labelled data set, by the server's own functions and without an annotator."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import svgd_label
from svgd_label import checkpoint, hardware
from svgd_label.active_step import score_pool
from svgd_label.device import default_device
from svgd_label.experiments.experiment import FULL, INITIAL, ExperimentError
from svgd_label.experiments.pictures import write_pictures
from svgd_label.experiments.run import Run, Track, write_json
from svgd_label.images import ImageError
from svgd_label.inference import evaluate
from svgd_label.pool import Acquisition, Database, Pool, Studies
from svgd_label.scoring import prepare
from svgd_label.svgd import Committee
from svgd_label.tasks import Task
from svgd_label.training import Case, train

logger = logging.getLogger(__name__)

Record = dict[str, Any]
Trained = tuple[Committee, Record]


@dataclass(frozen=True)
class Job:
    """One arm and seed, the full-data reference of a seed, or the committee that a seed's arms begin with."""

    kind: str
    """``arm``, ``full`` or ``initial``."""
    arm: str
    """Of an initial committee, the first arm that begins with it."""
    seed: int

    def track(self, run: Run) -> Track:
        """Where it writes."""
        return (run.initial_track if self.kind == INITIAL else run.track)(self.arm, self.seed)

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}" + (", initial committee" if self.kind == INITIAL else "")


def jobs(run: Run, arms: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """What there is to do, seed by seed, so that whole pairs are there as early as can be."""
    found: dict[Path, Job] = {}
    for seed in seeds:
        for arm in arms:
            # Through a server, each arm trains its first committee itself.
            if not run.through_server and not run.track(arm, seed).steps():
                found.setdefault(run.initial_track(arm, seed).folder, Job(INITIAL, arm, seed))
        for job in (*(Job("arm", arm, seed) for arm in arms), Job(FULL, FULL, seed)):
            found[job.track(run).folder] = job
    return list(found.values())


def initial(run: Run, job: Job, track: Track) -> None:
    """The first training of a seed, on the initial labels."""
    task, chosen = run.task(job.arm), set(run.initial_labels(job.seed))
    cases, unusable = _usable(task, [case for case in run.cases["pool"] if case.id in chosen])
    _, record = _trained(task, track, 1, lambda step: _train(run, task, track, cases, job.seed, step, len(chosen)))
    record["unusable"] |= unusable
    track.append({"step": 1, **record, "last": True, **computed_by()})


def full(run: Run, job: Job, track: Track) -> None:
    """The reference: all labels of the pool, as many trainings as an arm makes that never repeats an image."""
    task, pool = run.base_task, run.cases["pool"]
    cases, unusable = _usable(task, pool)

    def make(step: int) -> Trained:
        return _train(run, task, track, cases, job.seed, step, len(pool))

    # From scratch, one training is as good as the last of several.
    trainings = run.trainings(task) if task.warm_start else 1
    for step in range(len(track.steps()) + 1, trainings + 1):
        _, record = _trained(task, track, step, make)
        record["unusable"] |= unusable
        finish(track, job, {"step": step, **record, "last": step == trainings})


def _usable(task: Task, cases: Sequence[Case]) -> tuple[list[Case], Record]:
    """The cases, by id, whose images a server would not pass over; of the others, why.

    Raises:
        ExperimentError: one is away for the moment.
    """
    usable: list[Case] = []
    unusable: Record = {}
    for case in sorted(cases, key=lambda case: case.id):
        try:
            prepare(task, case.id, case.image)
            usable.append(case)
        except ImageError as error:
            if error.passing:
                raise _away([case.id]) from error
            unusable[case.id] = str(error)
    return usable, unusable


def arm(run: Run, job: Job, track: Track) -> None:
    """Train, measure, score, pick, label: until the budget is spent or the trainings are."""
    task, cases = run.task(job.arm), {case.id: case for case in run.cases["pool"]}
    pool = Pool(Database(track.folder / "state", task=task.name), validation="none", max_frequency=task.max_frequency)

    def make(step: int) -> Trained:
        if step == 1:
            return _begun(run, job)
        listed = [replace(cases[entry.image], frequency=entry.frequency) for entry in pool.training_list()]
        return _train(run, task, track, listed, job.seed, step, pool.overview.labelled())

    with closing(pool.database):
        Studies(Path(run.cases["pool"][0].image).parent, pool, links=True).check(cases, [])
        pool.labels_found(run.initial_labels(job.seed))
        while not track.ended():
            step = len(track.steps()) + 1
            committee, record = _trained(task, track, step, make)
            distinct = record["distinct"]
            last = distinct >= run.budget or step >= run.max_trainings
            if not last:
                picked = _acquire(run, job, pool, committee, step, record)
                record["queued"] = picked.annotated[: run.budget - distinct]
                shown = [cases[image] for image in (*record["queued"], *picked.repeated)]
                write_pictures(track.folder / "pictures", task, committee, shown, step)
                last = not record["queued"] and pool.overview.open() == 0
                # The annotator answers; all of a step at once, so that a kill leaves none or all of them.
                pool.labels_found(record["queued"])
            finish(track, job, {"step": step, **record, "last": last})


def _begun(run: Run, job: Job) -> Trained:
    """The first step of an arm: the committee that its seed's arms share."""
    shared = run.initial_track(job.arm, job.seed)
    committee = checkpoint.load(shared.committee, run.task(job.arm), device=default_device()).committee
    record = shared.steps()[0]
    return committee, {key: value for key, value in record.items() if key not in ("step", "last", *computed_by())}


def _trained(task: Task, track: Track, step: int, make: Callable[[int], Trained]) -> Trained:
    """A step's committee and how its training went: from the disk where a kill came after the training."""
    device = default_device()
    if track.committee.exists():
        found = checkpoint.load(track.committee, task, device=device)
        if found.version == step:
            record: Record = json.loads(track.notes.read_text(encoding="utf-8"))
            return found.committee, record
    committee, record = make(step)
    # In this order: a committee of this step says that the notes are this step's too.
    write_json(track.notes, record)
    checkpoint.save(track.committee, committee, task, version=step)
    return committee, record


def _train(run: Run, task: Task, track: Track, cases: Sequence[Case], seed: int, step: int, distinct: int) -> Trained:
    """One training and its measures. What is random in it depends on seed and step, as in the server's trainer.

    Args:
        distinct: volumes that the annotator has labelled, with those that then could not be used.
    """
    device = default_device()
    if task.warm_start and step > 1:
        committee = checkpoint.load(track.committee, task, device=device).committee
    else:
        committee = checkpoint.new_committee(task, seed=seed).to(device)
    result = train(task, cases, committee, seed=seed + step)
    if result.away:  # without them the committee would not be the protocol's
        raise _away(result.away)
    trained = time.monotonic()
    return committee, {
        "distinct": distinct,
        "labelled": [case.id for case in cases],
        "frequencies": {case.id: case.frequency for case in cases},
        **measured(run, task, committee),
        "network_steps": result.steps * task.particles,
        "loss": result.loss,
        "distance": result.distance,
        "unusable": result.unusable,
        "seconds": {"train": result.seconds, "measure": time.monotonic() - trained},
    }


def measured(run: Run, task: Task, committee: Committee) -> Record:
    """Dice on the split: the mean, of each structure, of each volume."""
    found = evaluate(task, committee, [(case.image, case.label) for case in run.cases["evaluation"]])
    means = np.nanmean(np.asarray(found), axis=0)
    return {
        "mean_dice": float(np.nanmean(means)),
        "dice": dict(zip(task.labels, _known(means), strict=True)),
        "volumes": {case.id: _known(values) for case, values in zip(run.cases["evaluation"], found, strict=True)},
    }


def _known(values: Iterable[float]) -> list[float | None]:
    """JSON has no NaN, which is the Dice of a structure that is not there."""
    return [None if np.isnan(value) else float(value) for value in values]


def _acquire(run: Run, job: Job, pool: Pool, committee: Committee, step: int, record: Record) -> Acquisition:
    """Scores the pool and takes the active step, or reads the one that a killed process has taken already."""
    task = run.task(job.arm)
    acquired = acquisition_of(pool, step)
    started = time.monotonic()
    if acquired is None:
        found = score_pool(
            pool,
            task,
            committee,
            {case.id: case.image for case in run.cases["pool"]},
            version=step,
            strategy=run.strategy(job.arm),
            seed=job.seed,
        )
        acquired = found.acquisition
        record["unusable"] |= found.unusable
        if acquired is None:  # without them the picks would not be the method's
            raise _away(found.unusable.keys() - pool.unusable().keys())
    note_picks(record, pool, acquired)
    record["seconds"]["score"] = time.monotonic() - started
    return acquired


def _away(images: Iterable[str]) -> ExperimentError:
    return ExperimentError(f"cannot be read at present, start again: {', '.join(sorted(images))}; see the log")


def acquisition_of(pool: Pool, step: int) -> Acquisition | None:
    """The active step that was taken after a training; None where it was not yet."""
    return next((found for found in pool.acquisitions() if found.version == step), None)


def note_picks(record: Record, pool: Pool, acquired: Acquisition) -> None:
    """Adds what was picked and why, and what cannot be used."""
    record |= {"picks": acquired.picks, "repeated": acquired.repeated, "scores": acquired.scores}
    record["unusable"] |= pool.unusable()


def computed_by() -> Record:
    """The machine, threads of this process, and the version of this package: a run may go on elsewhere."""
    return {"hardware": hardware.describe(), "threads": torch.get_num_threads(), "package": svgd_label.__version__}


def finish(track: Track, job: Job, step: Record) -> None:
    """Writes a step's line, by which it is finished."""
    track.append({**step, **computed_by()})
    logger.info(
        "%s: step %d, %d labelled, Dice %.4f, %.0f s",
        job, step["step"], step["distinct"], step["mean_dice"], sum(step["seconds"].values()),
    )  # fmt: skip
