"""A committee on disk: written so that a kill leaves the old file or the new one, read without unpickling code."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

import svgd_label
from svgd_label.errors import UserError
from svgd_label.svgd import Committee
from svgd_label.tasks import Task

FORMAT = 1


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the sentence says which and what differs."""


class UnreadableError(CheckpointError):
    """A checkpoint that cannot be read now: its disk is away, or memory is short. It may be sound."""


class MismatchError(CheckpointError):
    """A sound checkpoint of another task, size, network or format."""


@dataclass(frozen=True)
class Checkpoint:
    """A committee, the model version it was published as, and what its training said of it."""

    committee: Committee
    version: int
    metrics: dict[str, Any] = field(default_factory=dict)


def save(
    path: Path,
    committee: Committee,
    task: Task,
    *,
    version: int,
    metrics: Mapping[str, Any] | None = None,
    half: bool = False,
) -> None:
    """Writes a committee by temporary file, flush and rename.

    Args:
        metrics: what is known of its training, for whoever finds the file; plain values.
        half: store the weights in half precision, for committees that are shipped.

    Raises:
        CheckpointError: it cannot be written, as where the disk is full; the old file stays.
    """
    state = {k: v.half() if half and v.is_floating_point() else v for k, v in committee.cpu_state().items()}
    content = {
        "format": FORMAT,
        "package": svgd_label.__version__,
        "version": version,
        **_shape(task),
        **_grid(task),
        "metrics": dict(metrics or {}),
        "state": state,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, (OSError, RuntimeError)):  # torch's own word for a full disk names neither
            raise CheckpointError(f"{path}: the committee cannot be written ({error}); is the disk full?") from error
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load(path: Path, task: Task, *, device: torch.device) -> Checkpoint:
    """Reads a committee for ``task``.

    Raises:
        MismatchError: of another task, size or network than ``task``'s, or another format.
        UnreadableError: it cannot be read now.
        CheckpointError: damaged or deleted.
    """
    try:
        return _load(path, task, device)
    except CheckpointError:
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError) and path.parent.is_dir():
            raise CheckpointError(f"{path.name}: the file is gone") from error
        if isinstance(error, (OSError, MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error):
            raise UnreadableError(f"{path.name}: the committee cannot be read at present ({error})") from error
        raise CheckpointError(f"{path.name}: not a committee that can be read ({type(error).__name__})") from error


def _load(path: Path, task: Task, device: torch.device) -> Checkpoint:
    content = torch.load(path, map_location="cpu", weights_only=True)
    if content["format"] != FORMAT:
        raise MismatchError(f"{path.name}: format {content['format']}; this version reads format {FORMAT}")
    # Committees of before that was stored are taken as they are.
    wanted = _shape(task) | {key: value for key, value in _grid(task).items() if key in content}
    version, state, metrics = int(content["version"]), content["state"], dict(content.get("metrics", {}))
    differing = [f"{k} {content[k]!r} there, {value!r} here" for k, value in wanted.items() if content[k] != value]
    if differing:
        raise MismatchError(f"{path.name}: the committee does not fit the task: {'; '.join(differing)}")
    committee = new_committee(task, seed=0)
    own = committee.state_dict()
    if own.keys() != state.keys() or any(own[key].shape != state[key].shape for key in own):
        # Another release of MONAI may build another network by the same name.
        raise MismatchError(f"{path.name}: its weights do not fit the network {task.network.name}")
    committee.load_state_dict(state)
    return Checkpoint(committee.to(device), version, metrics)


def new_committee(task: Task, *, seed: int) -> Committee:
    """A committee of independent random initialisations."""
    return Committee.build(task.build_network, size=task.particles, seed=seed)


def shipped(task: Task) -> Path | None:
    """The committee that comes with the package for this task, model version 0; None where there is none."""
    path = Path(str(files("svgd_label.tasks") / "committees" / f"{task.name}.pt"))
    return path if path.is_file() else None


def _shape(task: Task) -> dict[str, Any]:
    """What makes the weights fit the task."""
    return {
        "task": task.name,
        "labels": list(task.labels),
        "particles": task.particles,
        "network": task.network.model_dump(mode="json"),
    }


def _grid(task: Task) -> dict[str, Any]:
    """What makes images look to the network as those it was trained on."""
    return task.model_dump(mode="json", include={"spacing", "intensity"})
