"""The report of a run: one HTML page that needs nothing else, figures as SVG and PNG, table.md and summary.json."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

import svgd_label
from svgd_label.experiments.experiment import ExperimentError
from svgd_label.experiments.pictures import tile
from svgd_label.experiments.progress import duration
from svgd_label.experiments.report import figures
from svgd_label.experiments.report.conclusion import conclude, evidence
from svgd_label.experiments.report.findings import Findings
from svgd_label.experiments.report.statistics import SEEDS_FOR_INTERVALS
from svgd_label.experiments.run import Run, write_json

PAGE = "report.html"
TABLE = "table.md"
LICENCE = "LICENCE-pictures.txt"


@dataclass(frozen=True)
class Picture:
    """A picked volume as its committee saw it."""

    seed: int
    step: int
    image: str
    source: str
    """A data URI."""
    entropy: float
    """Mean of the slice, in nats."""


def write_report(run: Run, folder: Path, *, data: Path | None = None, licence: str | None = None) -> Path:
    """Writes the page, the figures, the table and summary.json into a folder.

    Args:
        run: arms and seeds that have not ended are left out, and named.
        folder: made where missing.
        data: the data set, where it is not where the run has read it.
        licence: source and licence of the data, which stand with its pictures. None: those of dataset.json; where it
            has none either, no volume is shown.

    Returns:
        The path of the page.

    Raises:
        ExperimentError: nothing has ended yet.
    """
    found = Findings(run, data or Path(run.config["data"]["folder"]))
    if not found.steps and not found.full:
        raise ExperimentError(f"{run.folder}: no arm has ended for any seed yet, so there is nothing to report")
    licence = licence or found.licence
    pictures = {arm: _pictures(found, arm) for arm in found.steps} if licence else {}
    folder.mkdir(parents=True, exist_ok=True)
    notice = _notice(licence) if licence and any(pictures.values()) else None
    page = _render(
        "report.html.j2",
        found,
        figures=_draw(found, folder),
        pictures=pictures,
        notice=notice,
        seeds_for_intervals=SEEDS_FOR_INTERVALS,
        version=svgd_label.__version__,
    )
    if notice:
        (folder / LICENCE).write_text(notice + "\n", encoding="utf-8")
    write_json(folder / "summary.json", found.summary, indent=2)
    (folder / TABLE).write_text(table(found), encoding="utf-8")
    (folder / PAGE).write_text(page, encoding="utf-8")
    return folder / PAGE


def table(found: Findings) -> str:
    """The conclusion and the arms in Markdown: what a README says of a run."""
    return _render("table.md.j2", found)


def _render(template: str, found: Findings, **more: Any) -> str:
    html = template.endswith(".html.j2")
    environment = Environment(autoescape=html, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": _number, "signed": _signed, "interval": _interval, "duration": duration}
    text = (files("svgd_label.experiments.report") / template).read_text(encoding="utf-8")
    said = {name: say(found.summary, found.claimed) for name, say in (("conclusion", conclude), ("evidence", evidence))}
    return environment.from_string(text).render(found=found, **said, **more) + "\n"


def _draw(found: Findings, folder: Path) -> dict[str, str]:
    """Name -> SVG element, of the figures for which there is something to show."""
    if not found.steps:
        return {}
    full = [[step["mean_dice"] for step in steps] for steps in found.full.values()]
    with figures.style():
        drawn = {
            "labels": figures.over_labels(found.summary, floor=found.floor_mean, mark=found.mark),
            "trainings": figures.over_trainings(found.summary, full),
            "differences": figures.differences(found.summary),
            "picks": figures.picks(
                {arm: list(seeds.values()) for arm, seeds in found.steps.items()}, found.run.config["data"]["pool"]
            ),
        }
        return {name: figures.save(figure, folder, name) for name, figure in drawn.items() if figure is not None}


def _pictures(found: Findings, arm: str) -> list[Picture]:
    """Of all picks of an arm, in their order; of a volume that was picked again, as it was at first."""
    shown = []
    for seed, steps in found.steps[arm].items():
        for step in steps:
            for image in (*step.get("queued", []), *step.get("repeated", [])):
                file = found.run.track(arm, seed).folder / "pictures" / f"{step['step']:03d}-{image}.npz"
                if file.is_file():
                    picture, entropy = tile(file, found.run.base_task.classes)
                    source = f"data:image/webp;base64,{b64encode(picture).decode()}"
                    shown.append(Picture(seed=seed, step=step["step"], image=image, source=source, entropy=entropy))
    return shown


def _notice(licence: str) -> str:
    return (
        f"The pictures of volumes show: {licence}. Of each volume one slice was taken, its grey values were scaled, "
        "labels and entropy were drawn. The pictures are under the same licence as the data."
    )


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def _interval(ends: Sequence[float] | None, *, signed: bool = False) -> str:
    return "–" if ends is None else " to ".join(_signed(end) if signed else _number(end) for end in ends)
