"""The figures of a report: drawn for the width of a phone, in colours that do on white and on black."""

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from svgd_label.experiments.experiment import BASELINES
from svgd_label.experiments.report.statistics import Vector, areas_of, paired

INK = "#1b1c1d"
"""Of text and axes: in the page it becomes the colour of the page's text."""
GREY = "#888888"
COLOURS = ("#1a86c7", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#9467bd", "#7f9f00")
"""After Okabe and Ito, told apart by those who see red and green alike, then others."""
DASHES = ("-", "--", "-.", ":")
FIRST, AGAIN = "#3182bd", "#e6550d"
WIDTH = 4.6
STYLE: Any = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    **{"axes.facecolor": "none", "figure.facecolor": "none", "legend.frameon": False, "legend.labelcolor": INK},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": GREY, "grid.alpha": 0.25},
    **{"font.size": 9.0, "legend.fontsize": 8.5},
}


def style() -> AbstractContextManager[None]:
    """The context in which the functions below are called."""
    return rc_context(STYLE)


def save(figure: Figure, folder: Path, name: str) -> str:
    """Writes NAME.svg and NAME.png, on white.

    Returns:
        The same as an SVG element without a ground, whose text takes the colour of the text around it.
    """
    svg = io.StringIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(folder / f"{name}.svg", facecolor="white", metadata={"Date": None})
        figure.savefig(folder / f"{name}.png", facecolor="white", dpi=200)
        figure.savefig(svg, format="svg", metadata={"Date": None})
    element = svg.getvalue()
    element = element[element.index("<svg") :]
    # Several stand in one page, where an id must be of one element only.
    element = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", element)
    return element.replace(INK, "currentColor")


def looks(arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and dashes of each arm, the same in all figures."""
    return {
        arm: {"color": colour, "linestyle": DASHES[number // len(COLOURS) % len(DASHES)]}
        for number, (arm, colour) in enumerate(zip(arms, cycle(COLOURS), strict=False))
    }


def over_labels(summary: Mapping[str, Any], *, floor: float | None, mark: float | None) -> Figure:
    """Dice over distinct labelled volumes: mean over seeds, and one standard deviation to both sides.

    Thin and dotted from where the first seed was cut off and keeps its last Dice.

    Args:
        summary: the content of summary.json.
        floor: Dice without looking at the image, if it is known.
        mark: labelled volumes with which the paper reached the level of all, if it is about this task.
    """
    figure, axes = _curves(len(summary["arms"]))
    budgets = summary["budget"]
    uneven = len({len(found["seeds"]) for found in summary["arms"].values()}) > 1
    for arm, look in looks(list(summary["arms"])).items():
        found = summary["arms"][arm]
        reached = min(distinct[-1] for distinct in found["raw"]["distinct"])
        label = f"{arm}, {len(found['seeds'])} seeds" if uneven else arm
        _band(axes, budgets, np.array(found["dice"]), label, look, measured=reached - budgets[0] + 1)
    axes.set(xlabel="distinct labelled volumes", ylabel="mean Dice on the held-out volumes")
    full = summary["full_data_dice"]
    if full is not None:
        axes.axhline(full, color=INK, linewidth=1, linestyle=(0, (6, 3)), label=f"all labels: {full:.3f}")
    if floor is not None:
        low, high = axes.get_ylim()
        if low < floor < high:
            axes.axhline(floor, color=INK, linewidth=1, linestyle=":", label=f"not looking: {floor:.3f}")
        else:  # drawn to scale it would press all curves to one edge
            axes.plot([], [], " ", label=f"{'↓' if floor <= low else '↑'} not looking: {floor:.3f}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if mark is not None and budgets[0] <= mark <= budgets[-1]:
        axes.axvline(mark, color=INK, linewidth=1, alpha=0.6, linestyle=":")
        axes.annotate(
            " the paper's mark", (mark, 0.02), xycoords=("data", "axes fraction"), rotation=90, va="bottom", ha="right",
            fontsize=8,
        )  # fmt: skip
    _legend(figure, axes)
    return figure


def over_trainings(summary: Mapping[str, Any], full: Sequence[Sequence[float]]) -> Figure:
    """Dice over trainings; a seed that ended earlier than others keeps its last Dice.

    Args:
        summary: the content of summary.json.
        full: Dice after each training on all labels, for each seed.
    """
    figure, axes = _curves(len(summary["arms"]))
    for arm, look in looks(list(summary["arms"])).items():
        _band(axes, None, _held(summary["arms"][arm]["raw"]["dice"]), arm, look)
    if full:
        _band(axes, None, _held(full), "all labels", {"color": GREY, "linestyle": (0, (6, 3))})
    axes.set(xlabel="trainings", ylabel="mean Dice on the held-out volumes")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure, axes)
    return figure


def differences(summary: Mapping[str, Any]) -> Figure | None:
    """Every arm minus each baseline in area under the curve: mean, its interval, and a ring for each seed."""
    arms, areas = summary["arms"], areas_of(summary)
    rows = {b: [arm for arm in arms if arms[arm][f"vs_{b}"]] for b in BASELINES}
    rows = {baseline: members for baseline, members in rows.items() if members}
    if not rows:
        return None
    figure = Figure(figsize=(WIDTH, 0.5 + sum(0.5 + 0.26 * len(m) for m in rows.values())), layout="constrained")
    panels = figure.subplots(
        len(rows), 1, sharex=True, squeeze=False, height_ratios=[0.6 + len(m) for m in rows.values()]
    )[:, 0]
    for panel, (baseline, members) in zip(panels, rows.items(), strict=True):
        for row, arm in enumerate(members):
            colour = looks(list(arms))[arm]["color"]
            mean, low, high = arms[arm][f"vs_{baseline}"]
            single = list(paired(areas, arm, baseline).values())
            panel.plot(single, [row] * len(single), "o", mfc="none", mec=colour, markersize=4, alpha=0.7)
            if low is not None:
                panel.plot([low, high], [row, row], color=colour, linewidth=2)
            panel.plot(mean, row, "d", color=colour, markersize=6)
        panel.axvline(0, color=INK, linewidth=1)
        panel.set_yticks(range(len(members)), members)
        panel.set_ylim(len(members) - 0.4, -0.6)
        panel.set_title(f"compared with {baseline}", fontsize=9, loc="left")
        panel.grid(axis="y", visible=False)
    panels[-1].xaxis.set_major_locator(MaxNLocator(5))
    panels[-1].set_xlabel("difference in area under the curve (right: better)")
    return figure


def picks(steps: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], pool: Sequence[str]) -> Figure:
    """A strip for each arm: which volumes were picked at which step, darker the more seeds picked them.

    Args:
        steps: arm -> for each seed the lines of its steps.jsonl.
        pool: all ids. Those picked most often, over all arms, stand on the left.
    """
    counts = {arm: _counts(seeds, pool) for arm, seeds in steps.items()}
    total = sum(first.sum(axis=0) + again.sum(axis=0) for first, again in counts.values())
    order = np.argsort(-np.asarray(total), kind="stable")
    figure = Figure(figsize=(WIDTH, 0.7 + 1.0 * len(steps)), layout="constrained")
    panels = figure.subplots(len(steps), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (arm, (first, again)) in zip(panels, counts.items(), strict=True):
        _strip(panel, first[:, order], again[:, order], len(steps[arm]))
        panel.set_title(arm, fontsize=9, loc="left")
        panel.set_ylabel("step")
        panel.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        panel.grid(visible=False)
    panels[-1].set_xlabel(f"the {len(pool)} volumes of the pool, those picked most often first")
    patches = [Patch(color=FIRST, label="labelled"), Patch(color=AGAIN, label="picked again, trained on once more")]
    figure.legend(handles=patches, loc="outside lower left", ncols=2)
    return figure


def _strip(axes: Axes, first: Vector, again: Vector, seeds: int) -> None:
    """One arm's picks, (steps, volumes) each."""
    shades = np.zeros((*first.shape, 4))
    both = first + again
    for counts, colour in ((first, FIRST), (again, AGAIN)):  # where some seeds did this and others that, mixed
        shades[..., :3] += (counts / np.maximum(both, 1))[..., None] * to_rgb(colour)
    shades[..., 3] = np.where(both > 0, 0.3 + 0.7 * both / seeds, 0)
    axes.imshow(
        shades.clip(0, 1), aspect="auto", interpolation="none", extent=(0.5, both.shape[1] + 0.5, len(both) + 0.5, 0.5)
    )


def _counts(seeds: Sequence[Sequence[Mapping[str, Any]]], pool: Sequence[str]) -> tuple[Vector, Vector]:
    """How many seeds labelled a volume at a step, and how many picked it again: (steps, volumes) each."""
    column = {image: number for number, image in enumerate(pool)}
    length = max(len(steps) for steps in seeds)
    first, again = np.zeros((length, len(pool))), np.zeros((length, len(pool)))
    for steps in seeds:
        for row, step in enumerate(steps):
            for counts, key in ((first, "queued"), (again, "repeated")):
                for image in step.get(key, []):
                    counts[row, column[image]] += 1
    return first, again


def _curves(arms: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, 3.6 + 0.1 * arms), layout="constrained")
    return figure, figure.subplots()


def _band(
    axes: Axes,
    x: Sequence[int] | None,
    values: Vector,
    label: str,
    look: Mapping[str, Any],
    *,
    measured: int | None = None,
) -> None:
    """Values (seeds, points) as their mean and one standard deviation to both sides; ``measured`` points are solid."""
    at = np.arange(1, values.shape[1] + 1) if x is None else np.asarray(x)
    mean = values.mean(axis=0)
    axes.plot(at[:measured], mean[:measured], linewidth=1.6, label=label, marker=None if x else ".", **look)
    if measured is not None:
        axes.plot(at[measured - 1 :], mean[measured - 1 :], linewidth=0.8, color=look["color"], linestyle=":")
    if len(values) > 1:
        spread = values.std(axis=0, ddof=1)
        axes.fill_between(at, mean - spread, mean + spread, color=look["color"], alpha=0.13, linewidth=0)


def _held(seeds: Sequence[Sequence[float]]) -> Vector:
    """(seeds, trainings): rows of different lengths, the shorter ones go on with their last value."""
    longest = max(len(values) for values in seeds)
    return np.array([[*values, *[values[-1]] * (longest - len(values))] for values in seeds])


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=2)
