"""What a user is told before and while an experiment runs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from tests.conftest import ROOT
from tests.experiments.conftest import saturate, small_experiment
from typer.testing import CliRunner

from svgd_label.cli import app
from svgd_label.errors import UserError
from svgd_label.experiments.experiment import Experiment, load_experiment
from svgd_label.experiments.progress import estimate, table, trainings_left
from svgd_label.experiments.replay import jobs
from svgd_label.experiments.run import Run
from svgd_label.svgd import phi


def shown(run: Run) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table(run, jobs(run, run.arms, [7]), 1))
    return capture.get()


def test_the_table_says_how_far_every_arm_is(finished: Path, file: Path, tmp_path: Path) -> None:
    over = shown(Run.open(finished))
    assert over.count("done") == 4
    run = Run.plan(tmp_path, load_experiment(str(file), {}))
    assert "left" not in shown(run).replace("time left", "")  # nothing is known yet
    steps = Run.open(finished).track("random", 7).steps()
    track = run.track("random", 7)
    track.folder.mkdir(parents=True)
    for step in steps[:2]:
        track.append({**step, "seconds": {"train": 60.0}})
    text = shown(run)
    row = next(line for line in text.splitlines() if "random" in line)
    assert "2 of 3" in row
    assert f"{steps[1]['mean_dice']:.4f}" in row
    assert "60 s" in row  # one training is left
    # That one, the shared first, twice two of the other arms, three of the reference: 9 at 60 s each.
    assert sum(trainings_left(run, job) for job in jobs(run, run.arms, [7])) == 9
    assert "9.0 min" in text


def test_a_dry_run_counts_the_trainings_and_leaves_nothing(tmp_path: Path, file: Path) -> None:
    result = CliRunner().invoke(app, ["experiment", str(file), "--run", str(tmp_path / "run"), "--dry-run"])
    assert result.exit_code == 0, result.output
    # The shared first one, two more for each of three arms, three of the reference.
    assert "10 trainings of" in result.output
    assert "6 scorings of 10 volumes" in result.output
    assert "up to 4 each" in result.output
    assert not (tmp_path / "run").exists()


def test_a_dry_run_passes_over_a_volume_that_the_run_passes_over(tmp_path: Path) -> None:
    fields = small_experiment(tmp_path)
    saturate(fields)
    run = Run.plan(tmp_path / "run", Experiment.model_validate(fields))
    assert "10 trainings of" in estimate(run, jobs(run, run.arms, [7]), 1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nope"], "no experiment 'nope'"),
        (["hippocampus-cpu", "--data", "/nowhere", "--arms", "random", "--seeds", "1"], "splits.json"),
        (["hippocampus-cpu", "--data", ".", "--arms", "random", "--seeds", "one"], "seeds.0 is 'one'"),
        (["hippocampus-cpu", "--arms", "random"], "'data' is missing"),
    ],
)
def test_a_mistake_ends_with_a_sentence(arguments: list[str], sentence: str) -> None:
    result = CliRunner().invoke(app, ["experiment", *arguments])
    assert isinstance(result.exception, UserError)
    assert sentence in str(result.exception)


def test_the_example_of_the_documentation_is_read_and_its_ensemble_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    arms = {arm.name: arm for arm in load_experiment(str(tmp_path / "mine.yaml"), {}).arms}
    rng = np.random.default_rng(0)
    particles, scores = (torch.tensor(rng.normal(size=(5, 1000)), dtype=torch.float32) for _ in range(2))
    # Particles 0.4 apart, and networks lie farther: nothing is left of kernel and repulsion.
    velocity = phi(particles * 0.01, scores, bandwidth=arms["ensemble"].task["bandwidth"])
    torch.testing.assert_close(velocity, scores / 5, rtol=1e-6, atol=0)
