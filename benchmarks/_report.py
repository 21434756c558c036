"""All measurements in one table on the terminal, and in one table and one figure in results/benchmarks/ and README."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from benchmarks.common import RESULTS, ROOT, Measurement

COLUMNS = ("benchmark", "ours", "theirs", "unit", "ratio", "target", "met")
MET, NOT_MET = "#2a7f62", "#c8553d"
BLOCK = re.compile(r"(?<=<!-- benchmarks -->\n).*?(?=<!-- end -->)", re.DOTALL)
BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 1}


def table(measurements: Sequence[Measurement]) -> Table:
    """For the terminal."""
    result = Table(*COLUMNS)
    for measurement in measurements:
        result.add_row(*_cells(measurement))
    return result


def write(folder: Path = RESULTS, readme: Path = ROOT / "README.md") -> None:
    """Draws ``all.png``, writes ``README.md`` and the block in the project's, from all JSON files of the folder."""
    contents = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    names = {field.name for field in dataclasses.fields(Measurement)}
    measurements = [Measurement(**{key: content[key] for key in names}) for content in contents]
    _draw(measurements, folder / "all.png")
    rows = [COLUMNS, ("---",) * len(COLUMNS), *map(_cells, measurements)]
    page = "".join("| " + " | ".join(row) + " |\n" for row in rows)
    machines = sorted({str(content["hardware"]) for content in contents})
    lines = [
        "# Benchmarks",
        "",
        "`python main.py bench` writes this page. Every ratio is ours / theirs of one run; lower is better.",
        "",
        page,
        "![ratio over target of every benchmark](all.png)",
        "",
        *(f"Measured on {machine}." for machine in machines),
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    text, blocks = BLOCK.subn(lambda _: page, readme.read_text(encoding="utf-8"))
    assert blocks == 1, f"{readme} has {blocks} places for the table"
    readme.write_text(text, encoding="utf-8")


def _cells(measurement: Measurement) -> tuple[str, ...]:
    return (
        measurement.name,
        f"{measurement.ours:.4g}",
        f"{measurement.theirs:.4g}",
        measurement.unit,
        f"{measurement.ratio:.3f}",
        f"≤ {measurement.target:g}",
        "yes" if measurement.met else "no",
    )


def _draw(measurements: Sequence[Measurement], path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    ordered = sorted(measurements, key=lambda m: m.ratio / m.target, reverse=True)
    figure = Figure(figsize=(8, 1.3 + 0.34 * len(ordered)), layout="constrained")
    axes = figure.subplots()
    shares = [m.ratio / m.target for m in ordered]
    bars = axes.barh([m.name for m in ordered], shares, color=[MET if m.met else NOT_MET for m in ordered])
    axes.bar_label(bars, [f"{m.ratio:.3g} (≤ {m.target:g})" for m in ordered], padding=4, fontsize=8, bbox=BEHIND)
    axes.set_xscale("log", subs=(2, 5))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.set_xlim(min([*shares, 0.5]) / 2, max([*shares, 1.0]) * 4)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("ratio / target: left of the line, the target is met")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(handles=[Patch(color=MET, label="met"), Patch(color=NOT_MET, label="not met")], loc="upper right")
    figure.savefig(path, dpi=150)
