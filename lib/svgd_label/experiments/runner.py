"""Does the jobs of a run: one after the other, or on Ray, where each arm and seed is a task of its own."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from svgd_label.errors import UserError
from svgd_label.experiments import replay, through_server
from svgd_label.experiments.experiment import FULL, INITIAL, ExperimentError
from svgd_label.experiments.replay import Job
from svgd_label.experiments.report.statistics import write_summary
from svgd_label.experiments.run import Run
from svgd_label.process import keep_freed_memory

logger = logging.getLogger(__name__)

CORES_ON_A_CLUSTER = 2
DEATHS = 5
"""A job whose worker dies so often is given up: it may take more memory than there is."""


def execute(run: Run, job: Job) -> None:
    """Does a job, or what is left of it."""
    keep_freed_memory()
    arm = through_server.arm if run.through_server else replay.arm
    track = job.track(run)
    with track.alone():
        if not track.ended():
            {INITIAL: replay.initial, FULL: replay.full, "arm": arm}[job.kind](run, job, track)


def run_here(run: Run, todo: Sequence[Job]) -> None:
    """One job after the other, in this process.

    Raises:
        ExperimentError: some could not be done; the others are.
    """
    failed: dict[Job, Exception] = {}
    for job in todo:
        try:
            execute(run, job)
            write_summary(run)
        except Exception as error:
            _note(failed, job, error)
    _end(run, failed)


def run_on_ray(run: Run, todo: Sequence[Job], *, workers: int, address: str | None) -> None:
    """All jobs at once, as far as there are workers; a job whose worker dies is given to another and goes on.

    Args:
        run: its folder, and the data, must be seen under the same path by all machines.
        workers: so many processes on this machine, which share its cores; without a meaning for a cluster.
        address: of a cluster to join, None to use this machine alone.

    Raises:
        ExperimentError: Ray is not installed or not to be reached, or some jobs could not be done; the others are.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ExperimentError("several workers need Ray: pip install 'svgd-label[cluster]'") from None
    threads = CORES_ON_A_CLUSTER if address else max(1, (os.cpu_count() or 1) // workers)
    try:
        ray.init(address=address or "local", num_cpus=None if address else workers * threads, include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ExperimentError(f"no Ray cluster can be reached at {address} ({error})") from error
    try:
        gpus = min(1.0, ray.cluster_resources().get("GPU", 0) / (1 if address else workers))
        remote = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=DEATHS)(_work)
        references: dict[Path, Any] = {}
        for job in todo:  # the initial ones stand before the arms that wait for them
            begun = references.get(run.initial_track(job.arm, job.seed).folder) if job.kind == "arm" else None
            references[job.track(run).folder] = remote.remote(run, job, threads, begun)
        failed: dict[Job, Exception] = {}
        of = dict(zip(references.values(), todo, strict=True))
        waiting = list(of)
        while waiting:
            (done, *_), waiting = ray.wait(waiting, num_returns=1)
            try:
                ray.get(done)
                write_summary(run)
            except ray.exceptions.RayTaskError as error:
                _note(failed, of[done], error.cause)
            except Exception as error:  # as where its worker died again and again
                _note(failed, of[done], error)
        _end(run, failed)
    finally:
        ray.shutdown()


def _work(run: Run, job: Job, threads: int, _begun: object) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("ignite", "svgd_label.training"):  # one line a step is enough from many
        logging.getLogger(name).setLevel(logging.WARNING)
    torch.set_num_threads(threads)
    execute(run, job)


def _note(failed: dict[Job, Exception], job: Job, error: Exception) -> None:
    known = isinstance(error, UserError)
    logger.error("%s: %s", job, error, exc_info=None if known else error)
    failed[job] = error


def _end(run: Run, failed: dict[Job, Exception]) -> None:
    if failed:
        reasons = "; ".join(
            f"{job}: {error}" if isinstance(error, UserError) else f"{job}: {type(error).__name__}, see the log"
            for job, error in failed.items()
        )
        raise ExperimentError(f"{len(failed)} jobs of {run.folder} could not be done ({reasons}); the others are")
