"""The replay spends its budget as the protocol says, and a kill at any moment changes nothing."""

import errno
import json
import os
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tests.conftest import save_nifti
from tests.experiments.conftest import command, saturate, small_experiment, steps, wait_for
from typer.testing import CliRunner

from svgd_label.cli import app
from svgd_label.experiments.experiment import Experiment, ExperimentError, load_experiment
from svgd_label.experiments.replay import jobs
from svgd_label.experiments.run import Run
from svgd_label.experiments.runner import run_here
from svgd_label.images import files

ARMS = ("entropy_mi_delete", "random", "keeping")


def test_labels_are_spent_up_to_the_budget_and_never_twice(finished: Path) -> None:
    for arm in ARMS[:2]:
        found = steps(finished, arm)
        assert [line["distinct"] for line in found] == [3, 5, 6]
        assert [line["last"] for line in found] == [False, False, True]
        assert [len(line["queued"]) for line in found[:-1]] == [2, 1]  # the last step asks for what is left only
        for line, after in pairwise(found):
            assert set(after["labelled"]) == {*line["labelled"], *line["queued"]}
            assert not set(line["labelled"]) & set(line["queued"])


def test_a_repeating_arm_trains_more_often_on_what_it_picks_again(finished: Path) -> None:
    found = steps(finished, "keeping")
    assert len(found) <= 4
    for line, after in pairwise(found):
        assert set(line["picks"]) == {*line["queued"], *line["repeated"]} or after["distinct"] == 6
        for image, frequency in line["frequencies"].items():
            assert after["frequencies"][image] == frequency + (image in line["repeated"])
    assert any(line.get("repeated") for line in found)
    pictures = sorted(file.stem.split("-") for file in (finished / "keeping" / "seed-7" / "pictures").iterdir())
    first: dict[str, str] = {}
    for line in found[:-1]:
        for image in (*line["queued"], *line["repeated"]):
            first.setdefault(image, f"{line['step']:03d}")
    assert pictures == sorted([step, image] for image, step in first.items())


def test_arms_begin_alike_and_the_reference_sees_the_whole_pool(finished: Path) -> None:
    first = [steps(finished, arm)[0] for arm in ARMS]
    for key in ("labelled", "volumes", "mean_dice", "loss"):
        assert first[0][key] == first[1][key] == first[2][key]
    assert first[0]["picks"] != first[1]["picks"]
    full = steps(finished, "full")
    assert [line["distinct"] for line in full] == [10, 10, 10]
    assert full[-1]["last"]


def test_a_step_says_all_that_the_report_needs(finished: Path, fields: dict[str, Any]) -> None:
    line = json.loads((finished / "random" / "seed-7" / "steps.jsonl").read_text().splitlines()[0])
    assert line["network_steps"] == 4 * 2
    assert set(line["volumes"]) == {"blob_10", "blob_11"}
    means = np.mean(list(line["volumes"].values()), axis=0)
    assert list(line["dice"].values()) == pytest.approx(means.tolist())
    assert line["mean_dice"] == pytest.approx(means.mean())
    assert set(line["seconds"]) == {"train", "measure", "score"}
    assert set(line["scores"]) == set(line["picks"])
    assert line["hardware"]
    assert line["threads"] == 1
    assert line["package"]
    with np.load(finished / "random" / "seed-7" / "pictures" / f"001-{line['queued'][0]}.npz") as picture:
        assert {key: (picture[key].shape, str(picture[key].dtype)) for key in picture} == {
            "image": ((14, 15), "uint8"),
            "prediction": ((14, 15), "uint8"),
            "reference": ((14, 15), "uint8"),
            "entropy": ((14, 15), "float16"),
        }
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["arms"]["random"]["raw"]["distinct"] == [[3, 5, 6]]
    assert summary["arms"]["random"]["raw"]["dice"][0][0] == line["mean_dice"]


def test_a_finished_run_is_not_run_again(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.*")}
    run = Run.open(finished)
    run_here(run, jobs(run, run.arms, [7]))
    after = {path: path.stat().st_mtime_ns for path in finished.rglob("*.*")}
    assert {path.name for path in after if after[path] != before.get(path)} == {"summary.json"}


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(
    tmp_path: Path, file: Path, fields: dict[str, Any], finished: Path
) -> None:
    run = tmp_path / "run"
    committee = run / "random" / "seed-7" / "committee.pt"
    moments: list[Callable[[], object]] = [
        lambda: steps(run, "entropy_mi_delete"),  # in the second training
        committee.exists,  # after a training, before its scores
        lambda: list((run / "keeping" / "seed-7").glob("pictures/*")),  # after the picks, before the line
    ]
    kept: dict[Path, bytes] = {}
    for moment in moments:
        process = command(file, run)
        try:
            wait_for(moment, process)
        finally:
            process.kill()
            process.wait()
        for path, content in kept.items():
            assert path.read_bytes().startswith(content)  # what is finished stays as it is
        kept = {path: path.read_bytes() for path in run.rglob("steps.jsonl")}
    for image in Path(fields["data"], "imagesTr").iterdir():
        os.utime(image)  # the data set was copied anew: what was computed of its files is void, what was picked is not
    process = command(file, run)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    for arm in (*ARMS, "full"):
        for line, expected in zip(steps(run, arm), steps(finished, arm), strict=True):
            assert line | {"scores": None} == expected | {"scores": None}
            for image, scores in expected.get("scores", {}).items():
                # Mutual information is summed anew, over the joint histogram or its transpose.
                assert line["scores"][image] == pytest.approx(scores, rel=1e-12)


def test_a_torn_line_is_dropped(tmp_path: Path, file: Path) -> None:
    run = Run.plan(tmp_path / "run", load_experiment(str(file), {"arms": []}))
    track = run.track("full", 7)
    track.folder.mkdir(parents=True)
    track.append({"step": 1, "last": False})
    with (track.folder / "steps.jsonl").open("ab") as torn:
        torn.write(b'{"step": 2, "la')
    assert [step["step"] for step in track.steps()] == [1]
    track.append({"step": 2, "last": True})
    assert [step["step"] for step in track.steps()] == [1, 2]
    assert track.ended()


def test_only_the_reference_is_trained_where_there_is_no_arm(tmp_path: Path, file: Path) -> None:
    run = Run.plan(tmp_path / "run", load_experiment(str(file), {"arms": [], "split": "dev"}))
    run.begin()
    run_here(run, jobs(run, [], [7]))
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["arms"] == {}
    assert summary["full_data_dice"] == steps(run.folder, "full")[-1]["mean_dice"]
    assert set(steps(run.folder, "full")[-1]["volumes"]) == {"blob_12"}


def test_a_volume_that_cannot_be_used_costs_its_label_and_is_never_trained_on(tmp_path: Path) -> None:
    fields = small_experiment(tmp_path)
    saturated = saturate(fields)
    run = Run.plan(tmp_path / "run", Experiment.model_validate({**fields, "arms": ["random"]}))
    run_here(run, jobs(run, run.arms, [7]))
    found = steps(run.folder, "random")
    assert [line["distinct"] for line in found] == [3, 5, 6]
    assert [len(line["labelled"]) for line in found] == [2, 4, 5]
    reference = steps(run.folder, "full")
    assert [len(line["labelled"]) for line in reference] == [9, 9, 9]
    for line in (*found[:-1], *reference):
        assert "99 %" in line["unusable"][saturated]
    assert [job.kind for job in jobs(run, run.arms, [7])] == ["arm", "full"]  # the shared first one is of no more use


def test_a_volume_that_cannot_be_read_for_a_moment_ends_the_arm_and_changes_no_pick(
    tmp_path: Path, file: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.plan(tmp_path / "run", load_experiment(str(file), {"arms": ["entropy_mi_delete"]}))
    begun, arm = jobs(run, run.arms, [7])[:-1]
    opened = files.open_volume
    first, away = (
        next(case for case in run.cases["pool"] if (case.id in run.initial_labels(7)) == initial)
        for initial in (True, False)
    )

    def stale(path: Path) -> files.Volume:
        if path == Path(away.image):
            raise OSError(errno.ESTALE, "Stale file handle")
        return opened(path)

    with monkeypatch.context() as patch:
        away, other = first, away
        patch.setattr("svgd_label.images.open_volume", stale)
        with pytest.raises(ExperimentError, match=f"cannot be read at present, start again: {first.id};"):
            run_here(run, [begun])
        assert not run.initial_track(arm.arm, 7).committee.exists()
        away = other
        run_here(run, [begun])
        with pytest.raises(ExperimentError, match=f"cannot be read at present, start again: {away.id};"):
            run_here(run, [arm])
    assert steps(run.folder, "entropy_mi_delete") == []
    run_here(run, [arm])
    picks = [[line.get("picks") for line in steps(folder, "entropy_mi_delete")] for folder in (run.folder, finished)]
    assert picks[0] == picks[1]


def test_a_data_set_of_links_is_replayed_and_a_wrong_label_costs_no_arm(tmp_path: Path) -> None:
    fields = small_experiment(tmp_path / "stored")
    folder = tmp_path / "linked"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
        for file in (tmp_path / "stored" / part).iterdir():
            (folder / part / file.name).symlink_to(file)
    (folder / "splits.json").write_bytes((tmp_path / "stored" / "splits.json").read_bytes())
    run = Run.plan(tmp_path / "run", Experiment.model_validate({**fields, "data": folder, "arms": ["random"]}))
    chosen = run.initial_labels(7)
    for image in sorted({case.id for case in run.cases["pool"]} - set(chosen)):
        save_nifti(tmp_path / "stored" / "labelsTr" / f"{image}.nii.gz", np.full((14, 15, 16), 9, np.uint8))
    run_here(run, jobs(run, run.arms, [7])[:-1])
    found = steps(run.folder, "random")
    assert [line["distinct"] for line in found] == [3, 5, 6]
    assert found[-1]["labelled"]
    assert not list(run.track("random", 7).folder.glob("pictures/*.npz"))


def test_what_goes_wrong_in_one_job_keeps_none_of_the_others(tmp_path: Path, file: Path) -> None:
    run = Run.plan(tmp_path / "run", load_experiment(str(file), {"arms": ["random"]}))
    todo = jobs(run, run.arms, [7])
    run.track("random", 7).folder.parent.mkdir(parents=True)
    run.track("random", 7).folder.write_text("a file where the folder belongs")
    with pytest.raises(ExperimentError, match=r"1 jobs .* could not be done \(random, seed 7: File"):
        run_here(run, todo)
    assert run.track("full", 7).ended()


def test_two_processes_do_not_work_on_one_run(tmp_path: Path, file: Path) -> None:
    run = Run.plan(tmp_path / "run", load_experiment(str(file), {}))
    run.begin()
    before = (run.folder / "config.json").read_bytes()
    command = ["experiment", str(file), "--run", str(run.folder), "--arms", "jsd"]
    with run.alone():
        result = CliRunner().invoke(app, command)
        assert isinstance(result.exception, ExperimentError)
        assert "another process is at this run" in str(result.exception)
        assert (run.folder / "config.json").read_bytes() == before  # its arm was not added either
    with run.alone():
        pass


@pytest.mark.slow
def test_two_workers_of_which_one_is_killed_give_the_same(tmp_path: Path, file: Path, finished: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'svgd-label[cluster]'")
    run = tmp_path / "run"
    process = command(file, run, "--workers", "2")

    def workers() -> list[psutil.Process]:
        found = psutil.Process(process.pid).children(recursive=True)
        return [child for child in found if child.name().startswith("ray::_work")]

    try:
        wait_for(lambda: steps(run, "random") and workers(), process)
        os.kill(workers()[0].pid, signal.SIGKILL)
        output, _ = process.communicate(timeout=400)
    finally:
        process.terminate()
    assert process.returncode == 0, output
    for arm in (*ARMS, "full"):
        assert [line.get("picks") for line in steps(run, arm)] == [line.get("picks") for line in steps(finished, arm)]
