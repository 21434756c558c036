"""The command line: ``python main.py COMMAND``. Every command is a thin call of a function of the package."""

import importlib
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from svgd_label import label_history
from svgd_label.errors import UserError
from svgd_label.threads import set_thread_policy

ROOT = Path(__file__).resolve().parents[2]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(label_history.app, name="labels")


@app.callback()
def _commands() -> None:
    """SVGD Label: active learning for medical image segmentation."""


@app.command()
def serve(
    studies: Annotated[str | None, typer.Option(help="Folder of images; default: the sample study.")] = None,
    task: Annotated[str | None, typer.Option(help="A preset or a task's YAML file.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    conf: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE, a setting as after MONAI Label's --conf; may be repeated.")
    ] = None,
) -> None:
    """Start the server for annotators."""
    from svgd_label.server.start import serve as run

    settings: dict[str, str] = {}
    for setting in conf or []:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--conf {setting}: write KEY=VALUE, as in --conf lease=30")
        settings[key] = value
    run(studies, task, host=host, port=port, conf=settings)


@app.command()
def strategies() -> None:
    """List the query strategies with their sources."""
    from svgd_label.acquisition import ALIASES, STRATEGIES

    table = Table("name", "labelled images stay", "source")
    for strategy in STRATEGIES.values():
        alias = ", ".join(alias for alias, name in ALIASES.items() if name == strategy.name)
        name = f"{strategy.name} (alias {alias})" if alias else strategy.name
        table.add_row(name, "yes" if strategy.keeps_labelled else "no", strategy.source)
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
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 3400,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    weights: Annotated[Path | None, typer.Option(help="Where the committee goes; default: into the package.")] = None,
    report: Annotated[Path | None, typer.Option(help="Where the figures go; default: results/pretrain/.")] = None,
) -> None:
    """Train the committee that a task starts from, on a labelled data set."""
    from svgd_label.experiments.pretrain import pretrain as run
    from svgd_label.tasks import load_task

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
def bench(
    name: Annotated[str | None, typer.Argument(help="One benchmark; default: all.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repetitions, under 30 s each.")] = False,
) -> None:
    """Measure against the alternatives; the figures go to results/benchmarks/."""
    sys.path.insert(0, str(ROOT))  # the benchmarks stand beside the package, not in it
    files = (ROOT / "benchmarks").glob("*.py")
    known = sorted(file.stem for file in files if not file.stem.startswith(("_", "common")))
    if name is not None and name not in known:
        raise UserError(f"there is no benchmark {name!r}; known are {', '.join(known)}")
    from benchmarks import common

    table = Table("benchmark", "ours", "theirs", "unit", "ratio", "target", "met")
    for chosen in known if name is None else [name]:
        measured = importlib.import_module(f"benchmarks.{chosen}").run(quick=quick)
        common.write(measured, command=f"python main.py bench {chosen}{' --quick' if quick else ''}")
        figures = [f"{value:.4g}" for value in (measured.ours, measured.theirs)]
        met = "yes" if measured.met else "no"
        table.add_row(chosen, *figures, measured.unit, f"{measured.ratio:.3f}", f"<= {measured.target:g}", met)
    Console().print(table)


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
