"""What an experiment is, is read into one object or refused in a sentence; a run goes on only as it began."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conftest import NEEDS_SERVER
from tests.experiments.conftest import small_experiment

from svgd_label.experiments.dataset import DatasetError
from svgd_label.experiments.experiment import PROTOCOLS, Experiment, ExperimentError, load_experiment
from svgd_label.experiments.progress import trainings_left
from svgd_label.experiments.replay import jobs
from svgd_label.experiments.run import Run
from svgd_label.tasks import load_task, preset_names


def test_a_preset_brings_its_protocol(hippocampus: Path) -> None:
    found = load_experiment("hippocampus-cpu", {"data": hippocampus, "arms": ["bald"], "seeds": ["200", "201"]})
    assert (found.budget, found.seeds, found.split) == (50, (200, 201), "test")
    assert (found.arms[0].name, found.arms[0].strategy) == ("bald", "jsd")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_is_of_a_preset_and_leaves_room_for_its_trainings(name: str) -> None:
    assert name in preset_names()
    initial = 20 if name.startswith("pancreas") else 5 if name.startswith("sarcoma") else 10
    assert PROTOCOLS[name]["max_trainings"] >= 1 + (PROTOCOLS[name]["budget"] - initial) / load_task(name).queries


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"armz": []}, ["armz", "known are", "arms"]),
        ({"arms": ["entropi"]}, ["no query strategy 'entropi'", "random"]),
        ({"arms": ["random", "random"]}, ["twice", "random"]),
        ({"arms": [{"name": "full", "strategy": "random"}]}, ["'full'"]),
        ({"arms": [{"name": "a", "strategy": "random", "repeats": True}]}, ["arms.0.repeats", "known are", "repeat"]),
        ({"arms": [{"name": "report", "strategy": "random"}]}, ["'report'"]),
        ({"arms": [{"name": "random", "strategy": "entropy"}]}, ["'random' is the baseline of that name"]),
        ({"arms": [{"name": "clasp_pe", "task": {"queries": 1}}]}, ["'clasp_pe' is the baseline of that name"]),
        ({"arms": [{"name": "a", "strategy": "random", "task": {"max_minutes": 1}}]}, ["max_minutes", "in a replay"]),
        ({"seeds": []}, ["seeds"]),
        ({"seeds": [1, 1]}, ["seeds", "once"]),
        ({"split": "pool"}, ["split", "'test' or 'dev'"]),
        ({"budget": "many"}, ["budget", "'many'"]),
    ],
)
def test_a_wrong_field_is_refused_in_a_sentence(
    tmp_path: Path, fields: dict[str, Any], changes: dict[str, Any], words: list[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**fields, **changes}))
    with pytest.raises(ExperimentError) as caught:
        load_experiment(str(tmp_path / "mine.yaml"), {})
    for word in ["mine.yaml", *words]:
        assert word in str(caught.value)


def test_a_missing_field_and_an_unknown_preset_are_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: sample\n")
    with pytest.raises(ExperimentError, match=r"'data' is missing.*'arms' is missing.*'budget' is missing"):
        load_experiment(str(tmp_path / "mine.yaml"), {})
    with pytest.raises(ExperimentError, match=r"'liver': take hippocampus, .* path of a \.yaml file"):
        load_experiment("liver", {})
    (tmp_path / "mine.yaml").write_text("{}")
    with pytest.raises(ExperimentError, match="'task' is missing"):
        load_experiment(str(tmp_path / "mine.yaml"), {})
    (tmp_path / "mine.yaml").write_text("{task: liver, data: ., arms: [], seeds: [1], budget: 5, max_trainings: 2}")
    with pytest.raises(ExperimentError, match="no task 'liver'"):
        load_experiment(str(tmp_path / "mine.yaml"), {})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget": 3}, ["3 volumes", "above the 3 initial"]),
        ({"budget": 11}, ["11 volumes", "10 of the pool"]),
        ({"max_trainings": 2}, ["2 a step", "3 trainings", "'max_trainings' is 2"]),
        ({"arms": [{"name": "a", "strategy": "random", "task": {"stepz": 3}}]}, ["arm a: there is no field 'stepz'"]),
        ({"data": "/nowhere"}, ["splits.json", "there is no"]),
    ],
)
def test_what_does_not_fit_the_data_is_refused_before_anything_runs(
    tmp_path: Path, fields: dict[str, Any], changes: dict[str, Any], words: list[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**fields, **changes}))
    with pytest.raises(ValueError) as caught:
        Run.plan(tmp_path / "run", load_experiment(str(tmp_path / "mine.yaml"), {}))
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"test": ["blob_00.nii.gz"]}, ["once", "blob_00"]),
        ({"dev": ["blob_00.nii.gz"]}, ["once", "blob_00"]),
        ({"pool": ["blob_00.nii.gz"] * 2}, ["once", "blob_00"]),
        ({"pool": {"blob_00.nii.gz": 1}}, ["pool", "list"]),
        ({"initial": "3"}, ["initial is '3'"]),
        ({"initial": 0}, ["initial is 0"]),
        ({"test": ["../imagesTr/blob_10.nii.gz"]}, ["no name"]),
        ({"test": ["blob_10.png"]}, ["no name"]),
        (None, ["the whole is []"]),
    ],
)
def test_wrong_splits_are_refused_before_anything_runs(
    tmp_path: Path, changes: dict[str, Any] | None, words: list[str]
) -> None:
    fields = small_experiment(tmp_path)
    splits = json.loads((tmp_path / "splits.json").read_text())
    (tmp_path / "splits.json").write_text(json.dumps([] if changes is None else splits | changes))
    with pytest.raises(DatasetError) as caught:
        Run.plan(tmp_path / "run", Experiment.model_validate(fields))
    for word in [str(tmp_path / "splits.json"), *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [("{}", "task: Field required"), ("[]", "all: "), ('{"task": {"name": "a", "labels": ["b"], "no": 1}}', "task.no")],
)
def test_a_configuration_that_is_none_is_refused_in_a_sentence(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ExperimentError, match="no run that this version can read") as caught:
        Run.open(tmp_path)
    assert words in str(caught.value)


def test_another_configuration_is_refused_with_the_difference(
    tmp_path: Path, file: Path, fields: dict[str, Any]
) -> None:
    Run.plan(tmp_path / "run", load_experiment(str(file), {})).begin()
    before = (tmp_path / "run" / "config.json").read_bytes()
    task = {**yaml.safe_load(Path(fields["task"]).read_text()), "steps": 5, "window": [16, 16, 8]}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(task))
    changed = {"task": str(tmp_path / "other.yaml"), "budget": 7, "arms": [{"name": "keeping", "strategy": "jsd"}]}
    with pytest.raises(ExperimentError) as caught:
        Run.plan(tmp_path / "run", load_experiment(str(file), changed))
    for words in (
        "task.steps 4 there, 5 here",
        "task.window [16, 16, 16] there, [16, 16, 8] here",
        "budget 6 there, 7 here",
        "arms.keeping.strategy 'entropy' there, 'jsd' here",
    ):
        assert words in str(caught.value)
    assert "queries" not in str(caught.value)
    (tmp_path / "data").mkdir()
    moved = small_experiment(tmp_path / "data")
    splits = json.loads((tmp_path / "data" / "splits.json").read_text())
    (tmp_path / "data" / "splits.json").write_text(json.dumps({**splits, "test": splits["test"][:1]}))
    with pytest.raises(ExperimentError, match=r"data.evaluation \['blob_11'\] there, \[\] here"):
        Run.plan(tmp_path / "run", load_experiment(str(file), {"data": moved["data"]}))
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_a_run_goes_on_through_a_server_only_if_it_began_so(tmp_path: Path, file: Path) -> None:
    run = Run.plan(tmp_path / "run", load_experiment(str(file), {}))
    run.begin()
    arms = {"arms": ["random"], "through_server": True}
    with pytest.raises(ExperimentError, match="through_server False there, True here"):
        Run.plan(tmp_path / "run", load_experiment(str(file), arms))
    assert {job.kind for job in jobs(run, run.arms, [7])} == {"initial", "arm", "full"}


def test_an_arm_for_which_a_server_has_no_setting_is_refused(tmp_path: Path, file: Path) -> None:
    arm = {"name": "without", "strategy": "entropy", "repeat": False}
    experiment = load_experiment(str(file), {"arms": [arm], "through_server": True})
    with pytest.raises(ExperimentError, match="the arm without changes with 'repeat'"):
        Run.plan(tmp_path / "run", experiment)


@NEEDS_SERVER
def test_a_server_makes_each_arms_first_committee_itself(tmp_path: Path, file: Path) -> None:
    arm = {"name": "said", "strategy": "entropy", "repeat": True}  # what the strategy does anyway
    run = Run.plan(tmp_path / "run", load_experiment(str(file), {"arms": [arm, "random"], "through_server": True}))
    assert [str(job) for job in jobs(run, run.arms, [7])] == ["said, seed 7", "random, seed 7", "full, seed 7"]
    assert [trainings_left(run, job) for job in jobs(run, run.arms, [7])] == [3, 3, 3]


def test_an_arm_that_cannot_come_to_the_budget_is_named_beforehand(
    tmp_path: Path, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arms = ["random", {"name": "one_a_step", "strategy": "random", "task": {"queries": 1}}]
    Run.plan(tmp_path / "slow", load_experiment(str(file), {"arms": arms, "max_trainings": 3}))
    assert "the arm one_a_step asks for 1 volumes a step: it is cut off at 5 of 6, after 3 trainings" in caplog.text
    assert "the arm random" not in caplog.text


def test_an_arms_own_plan_of_noise_is_kept(tmp_path: Path, file: Path) -> None:
    arms = ["clasp_pe", {"name": "shorter", "strategy": "clasp_pe", "task": {"clasp_steps": 7}}]
    run = Run.plan(tmp_path / "run", load_experiment(str(file), {"arms": arms}))
    assert [run.task(arm).clasp_steps for arm in run.arms] == [2, 7]


def test_arms_and_seeds_are_added_to_a_run(tmp_path: Path, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    Run.plan(tmp_path / "run", load_experiment(str(file), {})).begin()
    run = Run.plan(tmp_path / "run", load_experiment(str(file), {"arms": ["jsd", "random"], "seeds": [9, 7]}))
    run.begin()
    assert run.arms == ["entropy_mi_delete", "random", "keeping", "jsd"]
    assert run.config["seeds"] == [7, 9]
    assert "the claimed arm stays entropy_mi_delete" in caplog.text
    assert Run.open(tmp_path / "run").config == run.config


def test_arms_of_a_seed_share_initial_labels_and_the_first_committee_where_they_train_alike(
    tmp_path: Path, file: Path
) -> None:
    arms: list[Any] = [
        "random",
        {"name": "scratch", "strategy": "random", "task": {"warm_start": False, "alpha": 2.0}},
        {"name": "cold", "strategy": "random", "task": {"temperature": 0.5}},
    ]
    run = Run.plan(tmp_path / "run", load_experiment(str(file), {"arms": arms}))
    folders = {arm: run.initial_track(arm, 7).folder for arm in run.arms}
    assert folders["random"] == folders["scratch"] != folders["cold"]
    draws = {tuple(run.initial_labels(seed)) for seed in range(20)}
    assert all(len(draw) == 3 for draw in draws)
    assert len(draws) > 10
