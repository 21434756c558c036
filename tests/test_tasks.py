"""A task file is read into one object, or refused in a sentence with file, field, value and what is allowed."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from svgd_label.tasks import Task, TaskError, load_task, preset_names

from .conftest import ROOT

MINE: dict[str, Any] = {"name": "spleen", "labels": ["spleen"], "window": [32, 32, 32]}

SUPERVISED = {
    "name": "DynUNet",
    "arguments": {
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, 2],
        "upsample_kernel_size": [2, 2],
        "filters": [4, 8, 8],
        "deep_supervision": True,
    },
}


def write(folder: Path, **changes: Any) -> str:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**MINE, **changes}))
    return str(path)


def test_three_fields_are_enough(tmp_path: Path) -> None:
    task = load_task(write(tmp_path))
    assert (task.particles, task.batch, task.mi_bins, task.validation) == (5, 4, 64, "fifth")
    assert task.classes == 2


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_tasks_of_their_own_name(name: str) -> None:
    assert load_task(name).name == name


def test_the_papers_table() -> None:
    task = load_task("hippocampus-paper")
    assert (task.learning_rate, task.batch, task.particles, task.steps, task.queries) == (0.001, 8, 5, 1500, 1)
    assert (task.window, task.intensity.clip, task.augment, task.warm_start) == ((64, 64, 64), (0, 2048), False, False)
    assert (task.aggregate, task.mi_grid, task.validation) == ("sum", "padded", "none")


def test_the_papers_table_for_the_pancreas() -> None:
    task = load_task("pancreas-paper")
    assert (task.learning_rate, task.batch, task.particles, task.steps, task.queries) == (0.0004, 8, 5, 10000, 5)
    assert (task.window, task.spacing, task.intensity.clip) == ((48, 48, 48), (4, 4, 4), (-87, 199))
    assert (task.patches, task.augment, task.warm_start, task.aggregate, task.mi_grid, task.validation) == (
        True, False, False, "sum", (32, 32, 32), "none",
    )  # fmt: skip


def test_tasks_made_from_another_are_it_but_for_what_they_say() -> None:
    def differing(one: str, other: str) -> set[str]:
        other_than = {"name", "description", "aliases", "modality"}
        fields = [load_task(name).model_dump(exclude=other_than) for name in (one, other)]
        return {key for key in fields[0] if fields[0][key] != fields[1][key]}

    assert differing("hippocampus", "hippocampus-cpu") == {"validation"}
    assert differing("pancreas", "sarcoma_ct") == {"labels"}


def test_the_example_of_the_readme_is_a_task(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text().split("```yaml\n")[1].split("```")[0]
    (tmp_path / "spleen.yaml").write_text(text)
    assert load_task(str(tmp_path / "spleen.yaml")).labels == ("spleen",)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": "many"}, ["steps", "'many'", "integer"]),
        ({"stepz": 3}, ["stepz", "known are", "steps"]),
        ({"labels": []}, ["labels"]),
        ({"labels": ["a", " A "]}, ["labels", "name of its own"]),
        ({"labels": ["background"]}, ["labels", "background"]),
        ({"optimizer": "Adamm"}, ["optimizer", "'Adamm'", "AdamW"]),
        ({"intensity": {"clip": [5, 1]}}, ["intensity", "5", "below"]),
        ({"intensity": {}}, ["intensity", "clip", "percentiles"]),
        ({"network": {"name": "Nope"}}, ["network", "Nope"]),
        ({"network": {"name": "UNet", "arguments": {"channels": [4, 8]}}}, ["network", "UNet"]),
        ({"window": [30, 31, 32]}, ["window", "(30, 31, 32)"]),
        ({"mi_grid": "padded", "patches": True}, ["mi_grid", "patches"]),
        ({"alpha": float("inf")}, ["alpha", "finite"]),
        ({"intensity": {"clip": [0, float("inf")]}}, ["intensity.clip", "finite"]),
        ({"labels": ["a", "b"], "aliases": {"a": ["x"], "b": ["X "]}}, ["aliases", "both a and b"]),
        ({"labels": ["a", "b"], "aliases": {"a": ["B"]}}, ["aliases", "both b and a"]),
        ({"network": SUPERVISED}, ["network", "deep supervision"]),
        ({"aliases": {"liver": ["x"]}}, ["aliases", "liver", "spleen"]),
        ({"mi_over": "median"}, ["mi_over", "median", "mean"]),
    ],
)
def test_a_wrong_value_is_refused_in_a_sentence(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(TaskError) as caught:
        load_task(path)
    for word in [path, *words]:
        assert word in str(caught.value)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: x\n")
    with pytest.raises(TaskError, match=r"'labels' is missing.*'window' is missing"):
        load_task(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("text", ["just words", "a: [1", "!!python/object/apply:os.system ['true']"])
def test_what_is_no_task_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(TaskError, match=r"mine\.yaml"):
        load_task(str(tmp_path / "mine.yaml"))


def test_an_unknown_name_lists_the_presets() -> None:
    with pytest.raises(TaskError, match=", ".join(preset_names())):
        load_task("liver")


def test_any_network_of_monai_can_be_named() -> None:
    task = Task.model_validate(
        {**MINE, "network": {"name": "BasicUNet", "arguments": {"features": [4, 4, 8, 8, 16, 4]}}}
    )
    assert type(task.build_network()).__name__ == "BasicUNet"
