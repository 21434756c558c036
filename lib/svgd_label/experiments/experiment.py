"""What an experiment is: task, data, arms, seeds, budget; read from a preset's protocol or a YAML file."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from typing_extensions import Self

from svgd_label import acquisition
from svgd_label.errors import UserError
from svgd_label.tasks import load_task

PROTOCOLS: dict[str, dict[str, Any]] = yaml.safe_load(
    (files("svgd_label.experiments") / "protocols.yaml").read_text(encoding="utf-8")
)
FULL, INITIAL = "full", "initial"
"""Folders of the full-data reference and of the committees that a seed's arms begin with; no arm is called so."""
BASELINES = ("random", "random_foreground", "clasp_pe")
"""What every arm is compared with: arms of these names, which are these strategies as they are."""
NOT_IN_A_REPLAY = {"validation", "max_minutes"}
"""Fields of a task that only a server reads: experiments keep no label back and end by steps."""


class ExperimentError(UserError):
    """An experiment that cannot be run; the sentence says what is wrong with it."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Arm(_Strict):
    """What is compared: a query strategy, with or without changes to strategy and task. A name alone is a strategy."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=60)]
    strategy: str
    repeat: Annotated[float, Field(ge=0, le=1)] | None = None
    """The share of a step's picks that labelled images may have, or false for none; None: as the strategy has it."""
    task: dict[str, Any] = {}
    """Fields of the task in place of the experiment's, as ``{warm_start: false}``."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        if isinstance(given, str):
            return {"name": given, "strategy": given}
        if isinstance(given, dict) and "name" in given:
            return {"strategy": given["name"], **given}
        return given

    @field_validator("strategy")
    @classmethod
    def _strategy(cls, name: str) -> str:
        return acquisition.strategy(name).name

    @model_validator(mode="after")
    def _folder(self) -> Self:
        if self.name in (FULL, "lock", "report") or self.name.startswith(INITIAL):
            raise ValueError(f"no arm can be called {self.name!r}: a folder of the run is")
        if self.name in BASELINES and (self.strategy, self.repeat, self.task) != (self.name, None, {}):
            raise ValueError(f"{self.name!r} is the baseline of that name: call an arm that differs otherwise")
        if unread := sorted(NOT_IN_A_REPLAY & self.task.keys()):
            raise ValueError(f"{self.name}: {' and '.join(unread)} mean nothing in a replay, leave them out")
        return self


class Experiment(_Strict):
    """One experiment. The number of queries a step is the task's own."""

    task: str
    """A preset, or the path of a task's YAML file."""
    data: Path
    """A folder in MSD layout with splits.json."""
    arms: tuple[Arm, ...]
    """The first is the one that is claimed to be better. Without any, only the full-data reference is trained."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    split: Literal["test", "dev"] = "test"
    """The cases on which committees are measured: choices are made on ``dev``, what is published on ``test``."""
    initial: Annotated[int, Field(ge=1)] | None = None
    """Volumes that are labelled at the start; None: as splits.json says."""
    budget: Annotated[int, Field(ge=2)]
    """Distinct volumes that are labelled at the end."""
    max_trainings: Annotated[int, Field(ge=1)]
    """An arm that has not come to the budget after so many trainings stops short of it."""
    through_server: bool = False
    """Whether each arm and seed drives a server process of its own over HTTP, as an annotator's viewer would."""

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("every seed once")
        return seeds

    @field_validator("arms")
    @classmethod
    def _arms(cls, arms: tuple[Arm, ...]) -> tuple[Arm, ...]:
        names = [arm.name for arm in arms]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"every arm needs a name of its own; twice there: {', '.join(doubled)}")
        return arms

    @model_validator(mode="after")
    def _tasks(self) -> Self:
        load_task(self.task)  # its sentences are its own
        return self


def load_experiment(source: str, given: dict[str, Any]) -> Experiment:
    """A preset's experiment by the task's name, or one of one's own by the path of its YAML file.

    Args:
        source: the name or the path.
        given: fields that stand in place of what is found there.

    Raises:
        ExperimentError: no such preset or file, or a wrong field; one sentence a mistake.
    """
    fields: Any = {"task": source}
    path = Path(source).expanduser()
    if path.suffix in (".yaml", ".yml"):
        try:
            fields = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ExperimentError(f"{source}: cannot be read ({' '.join(str(error).split())})") from error
        if not isinstance(fields, dict):
            raise ExperimentError(f"{source}: an experiment is a list of 'field: value' lines")
    elif source not in PROTOCOLS:
        raise ExperimentError(
            f"there is no experiment {source!r}: take {', '.join(PROTOCOLS)}, or the path of a .yaml file"
        )
    fields = {**PROTOCOLS.get(str(fields.get("task")), {}), **fields, **given}
    try:
        return Experiment.model_validate(fields)
    except ValidationError as error:
        raise ExperimentError("; ".join(_sentence(source, mistake) for mistake in error.errors())) from None


def _sentence(source: str, mistake: Any) -> str:
    field = ".".join(str(part) for part in mistake["loc"])
    message = str(mistake["msg"]).removeprefix("Value error, ")
    if mistake["type"] == "extra_forbidden":
        known = Arm.model_fields if len(mistake["loc"]) > 1 else Experiment.model_fields
        return f"{source}: there is no field {field!r}; known are {', '.join(known)}"
    if mistake["type"] == "missing":
        return f"{source}: the field {field!r} is missing"
    return f"{source}: {field} is {mistake['input']!r}: {message}" if field else f"{source}: {message}"
