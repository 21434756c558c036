"""How far a run is, read from its folder: a table that follows it on a terminal, and an estimate before it starts."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.logging import RichHandler
from rich.table import Table

from svgd_label import checkpoint, hardware
from svgd_label.device import default_device
from svgd_label.experiments.experiment import FULL, INITIAL
from svgd_label.experiments.replay import Job
from svgd_label.experiments.run import Run
from svgd_label.images import ImageError
from svgd_label.inference import evaluate
from svgd_label.scoring import prepare, score
from svgd_label.tasks import Task
from svgd_label.training import Case, train

TIMED_MINUTES = 1.0
TIMED_IMAGES = 3


def trainings_left(run: Run, job: Job) -> int:
    """How many trainings a job still makes where no further image is repeated."""
    steps = job.track(run).steps()
    if steps and steps[-1]["last"]:
        return 0
    if job.kind == INITIAL:
        return 1
    task = run.task(job.arm)
    if job.kind == FULL:
        return (run.trainings(task) if task.warm_start else 1) - len(steps)
    cap = run.max_trainings - len(steps)
    if not steps:
        return min(cap, run.trainings(task)) - (not run.through_server)  # else the first is the shared one
    return min(cap, max(1, ceil((run.budget - int(steps[-1]["distinct"])) / task.queries)))


def table(run: Run, todo: Sequence[Job], workers: int) -> Table:
    """A row for each arm and seed: step, labelled volumes, Dice, time left; what has ended last, for it may not fit."""
    jobs = [job for job in todo if job.kind != INITIAL]
    steps = {job: job.track(run).steps() for job in jobs}
    # The first step of an arm is a copy of the shared one: it says nothing of how long the next takes.
    seconds = [sum(step["seconds"].values()) for found in steps.values() for step in found[1:]]
    mean = float(np.mean(seconds)) if seconds else None
    left = {job: trainings_left(run, job) for job in todo}
    view = Table("arm", "seed", "step", "labelled", "Dice", "time left")
    for job in sorted(jobs, key=lambda job: not left[job]):
        number = len(steps[job])
        last = steps[job][-1] if number else {}
        view.add_row(
            job.arm,
            str(job.seed),
            f"{number} of {number + left[job]}" if left[job] else str(number),
            str(last.get("distinct", "")),
            f"{last['mean_dice']:.4f}" if number else "",
            "done" if not left[job] else "" if mean is None else duration(mean * left[job]),
        )
    if mean is not None:
        view.title = f"all: about {duration(mean * sum(left.values()) / workers)} left"
    return view


@contextmanager
def followed(run: Run, todo: Sequence[Job], workers: int) -> Iterator[None]:
    """Shows the table as long as the block runs; where there is no terminal, the log lines do."""
    console = Console()
    if not console.is_terminal:
        yield
        return
    root = logging.getLogger()
    root.handlers, root.level = [RichHandler(console=console, show_path=False)], logging.WARNING
    with Live(get_renderable=lambda: table(run, todo, workers), console=console, refresh_per_second=0.5):
        yield


def estimate(run: Run, todo: Sequence[Job], workers: int) -> str:
    """How many trainings there are to do and about how long they take, after timing one for up to a minute."""
    task, device = run.base_task, default_device()
    initial = run.initial_labels(run.config["seeds"][0])
    cases = [case for case in run.cases["pool"] if case.id in initial and _is_usable(task, case)]
    committee = checkpoint.new_committee(task, seed=0).to(device)
    timed = train(task, cases, committee, seed=0, max_minutes=TIMED_MINUTES)
    training = timed.seconds / timed.steps * task.steps
    started = time.monotonic()
    measured, scored = run.cases["evaluation"][:TIMED_IMAGES], cases[:TIMED_IMAGES]
    evaluate(task, committee, [(case.image, case.label) for case in measured])
    measuring = (time.monotonic() - started) / len(measured) * len(run.cases["evaluation"])
    started = time.monotonic()
    for case in scored:
        score(task, committee, prepare(task, case.id, case.image))
    scoring = (time.monotonic() - started) / len(scored) * len(run.cases["pool"])
    trainings = sum(trainings_left(run, job) for job in todo)
    scorings = sum(trainings_left(run, job) for job in todo if job.kind == "arm")
    total = (trainings * (training + measuring) + scorings * scoring) / workers
    return (
        f"{trainings} trainings of {duration(training)}, each measured on {len(run.cases['evaluation'])} volumes in "
        f"{duration(measuring)}, and {scorings} scorings of {len(run.cases['pool'])} volumes in {duration(scoring)}: "
        f"about {duration(total)} on {hardware.describe()}"
        + (f" with {workers} workers, if each were as fast as one alone" if workers > 1 else "")
        + ". Arms that repeat labelled images make more trainings, "
        f"up to {run.max_trainings} each."
    )


def _is_usable(task: Task, case: Case) -> bool:
    try:
        prepare(task, case.id, case.image)
    except ImageError:  # the run names it and goes on without
        return False
    return True


def duration(seconds: float) -> str:
    """``45 s``, ``3.1 min`` or ``5.2 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
