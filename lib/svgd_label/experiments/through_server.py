"""The replay through a server: a real server process, driven over HTTP by an annotator who knows all labels."""

import json
import logging
import shutil
import time
import uuid
from contextlib import closing
from pathlib import Path

import yaml

from svgd_label import checkpoint
from svgd_label.device import default_device
from svgd_label.experiments.pictures import write_pictures
from svgd_label.experiments.replay import Job, Record, acquisition_of, finish, measured, note_picks
from svgd_label.experiments.run import Run, Track, write_json
from svgd_label.experiments.server_process import ServerProcess, served
from svgd_label.pool import FINAL, Database, Pool
from svgd_label.pool.files import second_name
from svgd_label.tasks import Task

logger = logging.getLogger(__name__)

NEVER_MINUTES = 1e6
"""A limit that no training comes to: experiments end by steps, not by the clock."""
LEASE_MINUTES = 0.01
"""There is one annotator; what a killed one held is free at once."""


def arm(run: Run, job: Job, track: Track) -> None:
    """As ``replay.arm``, but it is a server that trains, scores, picks and saves.

    Its state says how far a killed run had come: model version and active step bear the number of the step, and labels
    are there or not.
    """
    task, state = run.task(job.arm), track.folder.resolve() / "state"
    conf = {
        "state": state,
        "strategy": run.strategy(job.arm).name,
        "seed": job.seed,
        "validation": "none",
        "initial": "none",
        "scoring_limit": len(run.cases["pool"]),
        "lease": LEASE_MINUTES,
    }
    with served(_studies(run, job, track), _task_file(task, track), conf, track.folder / "server.log") as server:
        logger.info("%s: the server answers at %s, its log is %s", job, server.address, server.log)
        pool = Pool(Database(state, task=task.name), validation="none", max_frequency=task.max_frequency)
        with closing(pool.database):
            # A server looks at all images when it starts; what cannot be used must be known before the first training.
            server.wait(lambda: not pool.pool_images() or _is_ordered(pool))
            while not track.ended():
                finish(track, job, _step(run, job, track, server, pool))


def _studies(run: Run, job: Job, track: Track) -> Path:
    """A studies folder of its own, with the initial labels in it: made once, and whole or not there."""
    studies, begun = track.folder / "studies", track.folder / ".studies"
    if not studies.exists():
        shutil.rmtree(begun, ignore_errors=True)
        labels = begun / "labels" / FINAL
        labels.mkdir(parents=True)
        initial = run.initial_labels(job.seed)
        for case in run.cases["pool"]:
            image, label = Path(case.image), Path(case.label)
            # Not symbolic links: the server follows none that lead out of the folder.
            second_name(image.resolve(), begun / image.name)
            if case.id in initial:
                second_name(label.resolve(), labels / label.name)
        begun.rename(studies)
    return studies


def _task_file(task: Task, track: Track) -> Path:
    file = track.folder / "task.yaml"
    file.write_text(yaml.safe_dump(task.model_dump(mode="json")), encoding="utf-8")
    return file


def _is_ordered(pool: Pool) -> bool:
    return any(state["first_position"] for state in pool.overview.image_states().values())


def _step(run: Run, job: Job, track: Track, server: ServerProcess, pool: Pool) -> Record:
    """One active step, or what is left of it."""
    task, step = run.task(job.arm), len(track.steps()) + 1
    record: Record = json.loads(track.notes.read_text(encoding="utf-8")) if track.notes.exists() else {}
    if record.get("step") != step:
        record = _trained(run, task, server, pool, step)
        # Before the first label is saved, because each changes the ranking and what is labelled.
        write_json(track.notes, record)
    if not record["last"]:
        _annotate(run, task, server, pool)
        acquired, labelled = acquisition_of(pool, step), set(pool.labelled())
        assert acquired is not None
        record["queued"] = [image for image in acquired.annotated if image in labelled]
        committee = checkpoint.load(_committee_file(pool, step), task, device=default_device()).committee
        cases = {case.id: case for case in run.cases["pool"]}
        picked = [cases[image] for image in [*record["queued"], *acquired.repeated]]
        write_pictures(track.folder / "pictures", task, committee, picked, step)
        record["last"] = not record["queued"] and pool.overview.open() == 0
    return record


def _trained(run: Run, task: Task, server: ServerProcess, pool: Pool, step: int) -> Record:
    """A training by the server, and its measures; unless it is the last one, scores and picks too."""
    distinct = pool.overview.labelled()
    last = distinct >= run.budget or step >= run.max_trainings
    server.work(lambda: pool.models.newest() == step, "/train/svgd", {"max_minutes": NEVER_MINUTES})
    published = time.monotonic()
    if not last:
        server.work(lambda: acquisition_of(pool, step) is not None, "/scoring/entropy_mi", {})
    scored = time.monotonic()
    committee = checkpoint.load(_committee_file(pool, step), task, device=default_device()).committee
    frequencies, metrics = server.train_stats()["training_list"], pool.models.metrics(step)
    record: Record = {
        "step": step,
        "distinct": distinct,
        "labelled": list(frequencies),
        "frequencies": frequencies,
        **measured(run, task, committee),
        "network_steps": metrics["steps"] * task.particles,
        "loss": metrics["loss"],
        "distance": metrics["distance"],
        "unusable": metrics["unusable"],
        "seconds": {"train": metrics["seconds"], "measure": time.monotonic() - scored},
        "last": last,
    }
    if not last:
        acquired = acquisition_of(pool, step)
        assert acquired is not None
        note_picks(record, pool, acquired)
        record["seconds"]["score"] = scored - published
    return record


def _committee_file(pool: Pool, step: int) -> Path:
    file = pool.models.file(step)
    assert file is not None  # the newest version is not removed
    return file


def _annotate(run: Run, task: Task, server: ServerProcess, pool: Pool) -> None:
    """Labels what the server proposes from its queue, until that is empty or the budget is spent."""
    client = uuid.uuid4().hex  # to another one, an image that was asked for and never labelled is proposed again
    segments = [{"name": name, "idx": value} for value, name in enumerate(task.labels, start=1)]
    labels = {case.id: Path(case.label) for case in run.cases["pool"]}
    while pool.overview.labelled() < run.budget:
        proposed = server.ask("POST", "/activelearning/svgd", json={"client_id": client})
        if proposed.get("from") != "queue":
            break
        params = json.dumps({"client_id": client, "label_info": segments})
        label = labels[proposed["id"]]
        with label.open("rb") as content:
            server.ask(
                "PUT",
                "/datastore/label",
                params={"image": proposed["id"]},
                data={"params": params},
                files={"label": (label.name, content)},
            )
