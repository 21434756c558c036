"""The folder of one run: its configuration, and for every arm and seed the finished steps and the committee."""

import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

import svgd_label
from svgd_label import acquisition
from svgd_label.acquisition import QueryStrategy
from svgd_label.experiments.dataset import Dataset
from svgd_label.experiments.experiment import FULL, INITIAL, Experiment, ExperimentError
from svgd_label.pool.files import incoming, sync_folder
from svgd_label.tasks import Task, TaskError, load_task, read_task
from svgd_label.training import Case

logger = logging.getLogger(__name__)

NOT_FOR_WEIGHTS = {
    *("name", "description", "aliases", "modality", "warm_start", "max_minutes", "validation"),
    *("aggregate", "mi_grid", "mi_over", "alpha", "queries", "max_frequency", "clasp_steps"),
}
"""Fields of a task that do not change what the first training makes of initial weights and labels."""


class _Data(BaseModel):
    folder: str
    pool: list[str]
    evaluation: list[str]


class _Arm(BaseModel):
    strategy: str
    repeat: float | None
    task: dict[str, Any]


class _Config(BaseModel):
    """What config.json has to hold."""

    task: Task
    arms: dict[str, _Arm]
    seeds: list[int]
    split: str
    initial: int
    budget: int
    max_trainings: int
    data: _Data


def write_json(path: Path, content: Any, *, indent: int | None = None) -> None:
    """Writes a file that is the old one or all of the new one, whatever happens meanwhile."""
    _write(path, (json.dumps(content, indent=indent, allow_nan=False) + "\n").encode())


@dataclass(frozen=True)
class Track:
    """The folder of one arm and seed, or of the full-data reference of one seed."""

    folder: Path

    @property
    def committee(self) -> Path:
        """The newest committee, whose version is the step that trained it."""
        return self.folder / "committee.pt"

    @property
    def notes(self) -> Path:
        """What is known of the step under way."""
        return self.folder / "training.json"

    def steps(self) -> list[dict[str, Any]]:
        """The finished steps, oldest first; a line that a kill has torn is none."""
        return [json.loads(line) for line in self._complete().decode().splitlines()]

    def ended(self) -> bool:
        """Whether nothing is left to do."""
        steps = self.steps()
        return bool(steps) and bool(steps[-1]["last"])

    def append(self, step: Mapping[str, Any]) -> None:
        """Notes a finished step; it is on the disk at return."""
        _write(self._file, self._complete() + json.dumps(step, allow_nan=False).encode() + b"\n")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Waits for another process that works on this track, as one whose parent was killed does for a moment."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @property
    def _file(self) -> Path:
        return self.folder / "steps.jsonl"

    def _complete(self) -> bytes:
        content = self._file.read_bytes() if self._file.exists() else b""
        return content[: content.rfind(b"\n") + 1]


@dataclass(frozen=True)
class Run:
    """A run as ``config.json`` in its folder says it."""

    folder: Path
    config: Mapping[str, Any]

    @classmethod
    def plan(cls, folder: Path, experiment: Experiment) -> "Run":
        """A new run, or one that is there and goes on, with the arms and seeds that are new to it; writes nothing.

        Raises:
            ExperimentError: the folder holds a run of another configuration, or data and budget do not fit together.
        """
        folder = folder.resolve()  # the workers of a cluster stand elsewhere
        new = _resolved(experiment)
        if (folder / "config.json").is_file():
            old = cls.open(folder).config
            both = old["arms"].keys() & new["arms"].keys()
            differing = [
                f"{key} {then!r} there, {now!r} here"
                for key, (then, now) in _differences(_compared(old, both), _compared(new, both)).items()
            ]
            if differing:
                raise ExperimentError(
                    f"{folder} holds a run of another configuration ({'; '.join(differing)}): take these values again, "
                    "or another folder with --run"
                )
            if old["arms"] and new["arms"] and next(iter(old["arms"])) != next(iter(new["arms"])):
                logger.warning(
                    "the claimed arm stays %s, the first that the run was begun with", next(iter(old["arms"]))
                )
            new["arms"] = {**old["arms"], **new["arms"]}
            new["seeds"] = [*old["seeds"], *(seed for seed in new["seeds"] if seed not in old["seeds"])]
        run = cls(folder, new)
        needed = run.trainings(run.base_task)
        if needed > experiment.max_trainings:
            raise ExperimentError(
                f"from {run.initial} to {run.budget} labelled volumes, {run.base_task.queries} a step, are {needed} "
                f"trainings, and 'max_trainings' is {experiment.max_trainings}"
            )
        for arm in run.arms:
            task = run.task(arm)  # a wrong change is found now, not after hours
            if run.trainings(task) > run.max_trainings:
                logger.warning(
                    "the arm %s asks for %d volumes a step: it is cut off at %d of %d, after %d trainings",
                    arm, task.queries, run.initial + (run.max_trainings - 1) * task.queries, run.budget,
                    run.max_trainings,
                )  # fmt: skip
            if run.through_server and run.strategy(arm) != acquisition.strategy(new["arms"][arm]["strategy"]):
                raise ExperimentError(
                    f"the arm {arm} changes with 'repeat' what its strategy does with labelled images, for which a "
                    "server has no setting: leave it out, or run without --through-server"
                )
        if run.through_server and find_spec("monailabel") is None:
            raise ExperimentError("--through-server needs MONAI Label: pip install 'svgd-label[server]'")
        return run

    def begin(self) -> None:
        """Writes the configuration, by which the folder is this run from now on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "config.json", self.config, indent=2)

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """A run that is there.

        Raises:
            ExperimentError: there is none, or its configuration is not one that this version knows.
        """
        try:
            run = cls(folder, json.loads((folder / "config.json").read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ExperimentError(f"{folder}: there is no run of an experiment ({error})") from error
        try:
            _Config.model_validate(run.config)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'all'}: {e['msg']}" for e in error.errors())
            raise ExperimentError(f"{folder / 'config.json'}: no run that this version can read ({wrong})") from error
        return run

    @property
    def arms(self) -> list[str]:
        """Names, in the order in which they were given."""
        return list(self.config["arms"])

    @property
    def through_server(self) -> bool:
        """Whether the arms drive a server; a run that was begun before there was a choice does not."""
        return bool(self.config.get("through_server", False))

    @property
    def budget(self) -> int:
        """Distinct labelled volumes at the end."""
        return int(self.config["budget"])

    @property
    def initial(self) -> int:
        """Labelled volumes at the start."""
        return int(self.config["initial"])

    @property
    def max_trainings(self) -> int:
        """Of an arm that has not come to the budget by then."""
        return int(self.config["max_trainings"])

    @cached_property
    def base_task(self) -> Task:
        """The task without the changes of any arm."""
        return Task.model_validate(self.config["task"])

    @cached_property
    def cases(self) -> dict[str, list[Case]]:
        """``pool`` and ``evaluation``, by id."""
        dataset = Dataset.read(Path(self.config["data"]["folder"]))
        known = {case.id: case for cases in dataset.splits.values() for case in cases}
        return {part: [known[case] for case in self.config["data"][part]] for part in ("pool", "evaluation")}

    def trainings(self, task: Task) -> int:
        """How many an arm makes that never repeats an image."""
        return 1 + ceil((self.budget - self.initial) / task.queries)

    def task(self, arm: str) -> Task:
        """The task of an arm, or of the full-data reference.

        Raises:
            ExperimentError: a field that the arm changes is wrong.
        """
        if arm == FULL:
            return self.base_task
        try:
            task = read_task({**self.config["task"], **self.config["arms"][arm]["task"]}, f"the arm {arm}")
        except TaskError as error:
            raise ExperimentError(str(error)) from None
        if "clasp_steps" in self.config["arms"][arm]["task"]:
            return task
        # ClaSP PE plans its noise over the steps of the run.
        trainings = min(self.trainings(task), self.max_trainings)
        return task.model_copy(update={"clasp_steps": max(1, trainings - 1)})

    def strategy(self, arm: str) -> QueryStrategy:
        """The query strategy of an arm."""
        given = self.config["arms"][arm]
        strategy = acquisition.strategy(given["strategy"])
        return strategy if given["repeat"] is None else replace(strategy, repeat=given["repeat"])

    def initial_labels(self, seed: int) -> list[str]:
        """What is labelled at the start, by id: drawn by the seed, the same for all arms."""
        ids = sorted(self.config["data"]["pool"])
        return sorted(np.random.default_rng(seed).choice(ids, size=self.initial, replace=False).tolist())

    def track(self, arm: str, seed: int) -> Track:
        """Where an arm, or ``full``, writes."""
        return Track(self.folder / arm / f"seed-{seed}")

    def initial_track(self, arm: str, seed: int) -> Track:
        """Where the committee is that a seed's first training makes: one for all arms that train alike."""
        fields = self.task(arm).model_dump_json(exclude=NOT_FOR_WEIGHTS)
        return Track(self.folder / f"{INITIAL}-{sha256(fields.encode()).hexdigest()[:8]}" / f"seed-{seed}")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other processes from starting the same run; makes its folder.

        Raises:
            ExperimentError: another one is at it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ExperimentError(f"{self.folder}: another process is at this run; wait for it or end it") from None
            yield


def _resolved(experiment: Experiment) -> dict[str, Any]:
    """An experiment with everything that its result depends on, as it stands in config.json."""
    dataset = Dataset.read(experiment.data)
    pool, evaluation = dataset.splits["pool"], dataset.splits[experiment.split]
    for split, cases in (("pool", pool), (experiment.split, evaluation)):
        if not cases:
            raise ExperimentError(f"{experiment.data / 'splits.json'}: it has no cases for {split!r}")
    initial = experiment.initial or dataset.initial
    if initial is None:
        raise ExperimentError("say with the field 'initial' how many volumes are labelled at the start")
    if not initial < experiment.budget <= len(pool):
        raise ExperimentError(
            f"the budget of {experiment.budget} volumes must be above the {initial} initial ones and at most the "
            f"{len(pool)} of the pool"
        )
    return {
        "task": load_task(experiment.task).model_dump(mode="json"),
        "arms": {
            arm.name: arm.model_dump(mode="json", include={"strategy", "repeat", "task"}) for arm in experiment.arms
        },
        "seeds": list(experiment.seeds),
        "split": experiment.split,
        "initial": initial,
        "budget": experiment.budget,
        "max_trainings": experiment.max_trainings,
        "through_server": experiment.through_server,
        "data": {
            "folder": str(experiment.data.resolve()),
            "pool": [case.id for case in pool],
            "evaluation": [case.id for case in evaluation],
        },
        "package": svgd_label.__version__,
    }


def _compared(config: Mapping[str, Any], arms: set[str]) -> dict[str, Any]:
    """What must not change within a run. The data may be moved; arms and seeds may be added."""
    kept = {key: config[key] for key in ("split", "initial", "budget", "max_trainings")}
    kept["task"] = Task.model_validate(config["task"]).model_dump(mode="json")  # with fields that came later
    data = {key: value for key, value in config["data"].items() if key != "folder"}
    kept["through_server"] = config.get("through_server", False)
    return {**kept, "data": data, "arms": {arm: config["arms"][arm] for arm in arms}}


def _differences(old: Any, new: Any, key: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old, new), for values that differ; of lists of cases only what the other has not."""
    if key.startswith("data.") and sorted(old) != sorted(new):
        return {key: ([case for case in old if case not in new], [case for case in new if case not in old])}
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return {} if old == new else {key: (old, new)}
    found: dict[str, tuple[Any, Any]] = {}
    for name in [*old, *(name for name in new if name not in old)]:
        found |= _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    return found


def _write(path: Path, content: bytes) -> None:
    temporary = incoming(path.parent, "")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)
