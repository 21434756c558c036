"""A committee on disk comes back as it was, or is refused in a sentence; a crash leaves the old file."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from svgd_label import checkpoint
from svgd_label.checkpoint import CheckpointError, MismatchError, UnreadableError, load, new_committee, save
from svgd_label.tasks import Task
from svgd_label.tasks.task import Intensity

CPU = torch.device("cpu")


def test_a_round_trip(tmp_path: Path, tiny: Task) -> None:
    committee = new_committee(tiny, seed=4)
    metrics = {"steps": 3, "loss": float("inf"), "validation_dice": (0.5, None), "unusable": {"a": "flat"}}
    save(tmp_path / "c.pt", committee, tiny, version=7, metrics=metrics)
    found = load(tmp_path / "c.pt", tiny, device=CPU)
    assert (found.version, found.metrics) == (7, metrics)
    assert torch.equal(found.committee.matrix(), committee.matrix())
    assert [file.name for file in tmp_path.iterdir()] == ["c.pt"]


def test_half_precision_is_read_as_float32(tmp_path: Path, tiny: Task) -> None:
    committee = new_committee(tiny, seed=4)
    save(tmp_path / "c.pt", committee, tiny, version=0, half=True)
    found = load(tmp_path / "c.pt", tiny, device=CPU).committee.matrix()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, committee.matrix(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"particles": 3}, ["particles 2 there, 3 here"]),
        ({"labels": ("one", "three")}, ["labels ['one', 'two'] there"]),
        ({"name": "other"}, ["task 'tiny' there, 'other' here"]),
        ({"spacing": (2.0, 2.0, 2.0)}, ["spacing None there, [2.0, 2.0, 2.0] here"]),
        ({"intensity": Intensity(clip=(0, 900))}, ["intensity", "here"]),
    ],
)
def test_what_does_not_fit_the_task_is_refused_with_what_differs(
    tmp_path: Path, tiny: Task, change: dict[str, Any], words: list[str]
) -> None:
    save(tmp_path / "c.pt", new_committee(tiny, seed=0), tiny, version=1)
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "c.pt", tiny.model_copy(update=change), device=CPU)
    for word in ["c.pt", *words]:
        assert word in str(caught.value)


def test_another_format_is_refused(tmp_path: Path, tiny: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    save(tmp_path / "c.pt", new_committee(tiny, seed=0), tiny, version=1)
    monkeypatch.undo()
    with pytest.raises(MismatchError, match="format 2; this version reads format 1"):
        load(tmp_path / "c.pt", tiny, device=CPU)


def test_one_of_before_the_grid_was_stored_is_taken_as_it_is(tmp_path: Path, tiny: Task) -> None:
    save(tmp_path / "c.pt", new_committee(tiny, seed=0), tiny, version=1)
    content = torch.load(tmp_path / "c.pt", weights_only=True)
    torch.save({key: value for key, value in content.items() if key not in ("spacing", "intensity")}, tmp_path / "c.pt")
    coarse = tiny.model_copy(update={"spacing": (2.0, 2.0, 2.0)})
    assert load(tmp_path / "c.pt", coarse, device=CPU).version == 1


def test_a_full_disk_is_said_and_the_old_file_stays(tmp_path: Path, tiny: Task) -> None:
    file = tmp_path / "c.pt"
    save(file, new_committee(tiny, seed=0), tiny, version=1)
    code = (
        "import resource, signal, sys; from pathlib import Path; from svgd_label import checkpoint; "
        "from svgd_label.tasks import Task; task = Task.model_validate_json(sys.argv[2]); "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
        "checkpoint.save(Path(sys.argv[1]), checkpoint.new_committee(task, seed=1), task, version=2)"
    )
    command = [sys.executable, "-c", code, str(file), tiny.model_dump_json()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert f"CheckpointError: {file}: the committee cannot be written" in ended.stderr
    assert "is the disk full?" in ended.stderr
    assert load(file, tiny, device=CPU).version == 1
    assert [file.name for file in tmp_path.iterdir()] == ["c.pt"]


def test_without_memory_it_is_unreadable_for_now_and_not_damaged(
    tmp_path: Path, tiny: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "c.pt", new_committee(tiny, seed=0), tiny, version=1)

    def full(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(checkpoint, "new_committee", full)
    with pytest.raises(UnreadableError, match="at present"):
        load(tmp_path / "c.pt", tiny, device=CPU)
    monkeypatch.undo()
    with pytest.raises(UnreadableError, match="at present"):
        load(tmp_path / "away" / "c.pt", tiny, device=CPU)
    with pytest.raises(CheckpointError, match="is gone"):
        load(tmp_path / "d.pt", tiny, device=CPU)


def test_weights_of_a_network_that_is_built_otherwise_today_are_refused(tmp_path: Path, tiny: Task) -> None:
    save(tmp_path / "c.pt", new_committee(tiny, seed=0), tiny, version=1)
    content = torch.load(tmp_path / "c.pt", weights_only=True)
    content["state"]["renamed"] = content["state"].pop(next(iter(content["state"])))
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=r"c\.pt: its weights do not fit the network UNet"):
        load(tmp_path / "c.pt", tiny, device=CPU)


class Evil:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, tiny: Task, write: Any) -> None:
    write(Evil(tmp_path / "ran"), tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="not a committee that can be read"):
        load(tmp_path / "c.pt", tiny, device=CPU)
    assert not (tmp_path / "ran").exists()


def test_a_cut_file_is_refused(tmp_path: Path, tiny: Task) -> None:
    save(tmp_path / "c.pt", new_committee(tiny, seed=0), tiny, version=1)
    (tmp_path / "c.pt").write_bytes((tmp_path / "c.pt").read_bytes()[:-100])
    with pytest.raises(CheckpointError):
        load(tmp_path / "c.pt", tiny, device=CPU)


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, tiny: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "c.pt", new_committee(tiny, seed=0), tiny, version=1)

    def crash(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(CheckpointError, match=r"cannot be written \(no space"):
        save(tmp_path / "c.pt", new_committee(tiny, seed=1), tiny, version=2)
    monkeypatch.undo()
    assert load(tmp_path / "c.pt", tiny, device=CPU).version == 1
    assert [file.name for file in tmp_path.iterdir()] == ["c.pt"]


def test_the_shipped_committee_fits_its_preset() -> None:
    from svgd_label.tasks import load_task

    task = load_task("hippocampus")
    path = checkpoint.shipped(task)
    assert path is not None
    assert path.stat().st_size <= 15e6
    assert path.with_suffix(".LICENSE.md").is_file()
    assert load(path, task, device=CPU).version == 0
