"""The command line: ``python main.py COMMAND``. Every command is a thin call of a function of the package."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from svgd_label import label_history
from svgd_label.errors import UserError
from svgd_label.process import keep_freed_memory, set_thread_policy

ROOT = Path(__file__).resolve().parents[2]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(label_history.app, name="labels")

TaskOption = Annotated[str | None, typer.Option(help="A preset or a task's YAML file.")]
HostOption = Annotated[str, typer.Option(help="Address to listen on.")]
PortOption = Annotated[int, typer.Option(help="Port to listen on.")]
ConfOption = Annotated[
    list[str] | None, typer.Option(help="KEY=VALUE, a setting as after MONAI Label's --conf; may be repeated.")
]


@app.callback()
def _commands() -> None:
    """SVGD Label: active learning for medical image segmentation."""


@app.command()
def serve(
    studies: Annotated[
        str | None, typer.Option(help="Folder of images, or address of a DICOMweb server; default: the sample study.")
    ] = None,
    task: TaskOption = None,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    conf: ConfOption = None,
) -> None:
    """Start the server for annotators."""
    from svgd_label.server.start import serve as run

    run(studies, task, host=host, port=port, conf=_settings(conf))


@app.command()
def serve_dicom(
    dicom: Annotated[Path | None, typer.Argument(help="Folder of DICOM files to load first.")] = None,
    task: TaskOption = None,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    dicom_port: Annotated[int, typer.Option(help="Port of Orthanc, on this machine only.")] = 8042,
    conf: ConfOption = None,
) -> None:
    """Start a DICOM server (Orthanc) on this machine, and the server for annotators on it."""
    from svgd_label.server.dicom.orthanc import serve as run

    run(dicom, task, host=host, port=port, dicom_port=dicom_port, conf=_settings(conf))


def _settings(conf: list[str] | None) -> dict[str, str]:
    settings: dict[str, str] = {}
    for setting in conf or []:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--conf {setting}: write KEY=VALUE, as in --conf lease=30")
        settings[key] = value
    return settings


@app.command()
def strategies() -> None:
    """List the query strategies with their sources."""
    from svgd_label.acquisition import ALIASES, STRATEGIES

    table = Table("name", "alias", "of labelled images", "source")
    for strategy in STRATEGIES.values():
        alias = ", ".join(alias for alias, name in ALIASES.items() if name == strategy.name)
        table.add_row(strategy.name, alias, f"{strategy.repeat:.0%}", strategy.source)
    Console().print(table)


@app.command()
def sample_data(
    folder: Annotated[Path, typer.Argument(help="Where the phantoms go.")] = ROOT / "sample-data",
    seed: Annotated[int, typer.Option(help="Another seed makes other phantoms.")] = 0,
) -> None:
    """Generate the phantoms of sample-data/."""
    from svgd_label.sample_data import generate

    generate(folder, seed=seed)


@app.command()
def pretrain(
    task: Annotated[str, typer.Argument(help="A preset or a task's YAML file.")],
    data: Annotated[Path, typer.Option(help="Folder in MSD layout with splits.json.")],
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 9000,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    weights: Annotated[Path | None, typer.Option(help="Where the committee goes; default: into the package.")] = None,
    report: Annotated[Path | None, typer.Option(help="Where the figures go; default: results/pretrain/.")] = None,
) -> None:
    """Train the committee that a task starts from, on a labelled data set."""
    from svgd_label.experiments.pretrain import pretrain as run
    from svgd_label.tasks import load_task

    keep_freed_memory()
    chosen = load_task(task)
    run(
        chosen,
        data,
        steps=steps,
        seed=seed,
        weights=weights or ROOT / "lib" / "svgd_label" / "tasks" / "committees" / f"{chosen.name}.pt",
        report=report or ROOT / "results" / "pretrain" / f"{chosen.name}.json",
    )


@app.command()
def repulsion(
    task: Annotated[str, typer.Argument(help="A preset or a task's YAML file.")],
    data: Annotated[Path, typer.Option(help="Folder in MSD layout with splits.json.")],
    arm: Annotated[list[str] | None, typer.Option(help="May be repeated; default: all.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="May be repeated; default: 100 and 101.")] = None,
    steps: Annotated[int, typer.Option(min=4, help="Training steps.")] = 200,
    folder: Annotated[Path, typer.Option(help="Where runs, table and figure go.")] = ROOT / "results" / "repulsion",
) -> None:
    """Measure drive and repulsion of SVGD against a plain ensemble; finished runs are not run again."""
    from svgd_label.experiments.repulsion.figure import draw, table
    from svgd_label.experiments.repulsion.study import read, study
    from svgd_label.tasks import load_task

    keep_freed_memory()
    chosen = load_task(task).model_copy(update={"steps": steps})
    study(chosen, data, folder, arms=arm, seeds=seed or [100, 101])
    runs = read(folder / "runs.jsonl")
    (folder / "table.md").write_text(table(runs), encoding="utf-8")
    draw(runs, folder / "repulsion.png")


@app.command()
def bench(
    name: Annotated[str | None, typer.Argument(help="One benchmark; default: all.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repetitions, about 30 s each.")] = False,
) -> None:
    """Measure against the alternatives; the figures go to results/benchmarks/, those of --quick nowhere."""
    sys.path.insert(0, str(ROOT))  # the benchmarks stand beside the package, not in it
    from benchmarks import _report, common

    known = common.benchmarks()
    if name is not None and name not in known:
        raise UserError(f"there is no benchmark {name!r}; known are {', '.join(known)}")
    keep_freed_memory()
    measured = []
    for chosen in known if name is None else [name]:
        try:
            measured += common.run(chosen, quick=quick)
        except ModuleNotFoundError as error:
            raise UserError(f"the benchmark {chosen} needs the module {error.name}: make test installs it") from error
    Console().print(_report.table(measured))
    if not quick:
        _report.write()


@app.command()
def experiment(
    source: Annotated[str, typer.Argument(help="A preset, or an experiment's YAML file.")],
    data: Annotated[Path | None, typer.Option(help="Folder in MSD layout with splits.json.")] = None,
    arms: Annotated[str | None, typer.Option(help="Query strategies, with commas; the claimed one first.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Numbers, with commas.")] = None,
    split: Annotated[str | None, typer.Option(help="What is measured on: test, or dev for choices.")] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the run; default: runs/NAME.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how long it takes, after timing one.")] = False,
    through_server: Annotated[bool, typer.Option("--through-server", help="Drive a real server, over HTTP.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes on this machine; more than 1 need Ray.")] = 1,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster to join.")] = None,
) -> None:
    """Replay active learning over a labelled data set; started again, it goes on where it was."""
    from svgd_label.experiments import experiment, progress, replay, runner
    from svgd_label.experiments.run import Run

    listed = {"arms": arms, "seeds": seeds}
    given = {
        key: [part.strip() for part in text.split(",") if part.strip()]
        for key, text in listed.items()
        if text is not None
    }
    plain = {"data": data, "split": split, "through_server": through_server}
    chosen = experiment.load_experiment(source, given | {key: value for key, value in plain.items() if value})
    planned = Run.plan(run or ROOT / "runs" / Path(source).stem, chosen)
    todo = replay.jobs(planned, [arm.name for arm in chosen.arms], chosen.seeds)
    if dry_run:
        typer.echo(progress.estimate(planned, todo, workers))
        return
    with planned.alone(), progress.followed(planned, todo, workers):
        planned.begin()
        if ray or workers > 1:
            runner.run_on_ray(planned, todo, workers=workers, address=ray)
        else:
            runner.run_here(planned, todo)
    typer.echo(f"{planned.folder / 'summary.json'} holds the result")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[
        Path | None, typer.Option(help="Where page and figures go; default: report/ in the run's folder.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The data set, where it has been moved since.")] = None,
    licence: Annotated[
        str | None, typer.Option(help="Source and licence of the data; default: as its dataset.json says.")
    ] = None,
) -> None:
    """Write what a run has shown as one HTML page, with its figures."""
    from svgd_label.experiments.report.page import write_report
    from svgd_label.experiments.run import Run

    typer.echo(write_report(Run.open(run), out or run / "report", data=data, licence=licence))


def main() -> None:
    """Runs the command line; what a user can mend ends with its sentence, not with a traceback."""
    set_thread_policy()  # commands import torch when they run
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("ignite").setLevel(logging.WARNING)
    try:
        app()
    except UserError as error:
        typer.echo(f"Error: {error}", err=True)
        raise SystemExit(2) from None
