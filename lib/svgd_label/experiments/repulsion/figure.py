"""The figure and the table of the repulsion study, from its finished runs."""

from collections import defaultdict
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from svgd_label.experiments.repulsion.study import ARMS

MEASURES = ("dice", "particle_dice", "disagreement", "jsd", "ece", "brier", "nll", "auroc", "rank")
MAIN = {"svgd": "tab:blue", "ensemble": "tab:orange"}
Runs = list[dict[str, Any]]


def grouped(runs: Runs) -> dict[tuple[str, str], Runs]:
    """Runs by task and arm, arms in their order; of a task with other steps or volumes, which do not compare, apart."""
    kinds: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for run in runs:
        kinds[run["task"]].add((run["steps"], run["volumes"]))

    def name(run: dict[str, Any]) -> str:
        task: str = run["task"]
        return task if len(kinds[task]) == 1 else f"{task}, {run['steps']} steps, {run['volumes']} volumes"

    groups: dict[tuple[str, str], Runs] = defaultdict(list)
    for run in sorted(runs, key=lambda run: (name(run), list(ARMS).index(run["arm"]), run["seed"])):
        groups[name(run), run["arm"]].append(run)
    return groups


def table(runs: Runs) -> str:
    """Markdown: for each task and arm the measures at the end of training, means over seeds."""
    lines = ["| task | arm | seeds | distance | " + " | ".join(MEASURES) + " |", "|---" * (len(MEASURES) + 4) + "|"]
    for (task, arm), members in grouped(runs).items():
        ends = [run["dev"][-1] for run in members]
        values = [np.mean([end[measure] for end in ends]) for measure in MEASURES]
        distance = np.mean([run["terms"][-1]["distance"] for run in members])
        cells = " | ".join(f"{value:.4f}" for value in values)
        lines.append(f"| {task} | {arm} | {len(members)} | {distance:.1f} | {cells} |")
    return "\n".join(lines) + "\n"


def draw(runs: Runs, path: Path) -> None:
    """Six panels: the terms of phi, how Adam sees them, distances; disagreement, Dice and Brier score by arm."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(16, 9.5), layout="constrained")
    axes = figure.subplots(2, 3)
    groups = grouped(runs)
    tasks = sorted({task for task, _ in groups})
    styles: dict[str, Any] = dict(zip(tasks, cycle(("-", "--", ":", "-.")), strict=False))

    def curves(axis: Any, arm: str, source: str, name: str, colour: str, label: str) -> None:
        for task in tasks:
            members = groups.get((task, arm))
            if members:
                steps = [record["step"] for record in members[0][source]]
                values = np.mean([[record[name] for record in run[source]] for run in members], axis=0)
                axis.plot(steps, values, styles[task], color=colour, label=label)
                label = ""  # one entry a quantity: the tasks' line styles stand below all panels

    for name, colour in (("own", "tab:blue"), ("others", "tab:green"), ("repulsion", "tab:red")):
        curves(axes[0, 0], "svgd", "terms", name, colour, name)
    axes[0, 0].set(title="SVGD: norms of the terms of φ")
    axes[0, 0].set_yscale("log")
    for name, colour, label in (
        ("repelled", "tab:red", "weights where repulsion > drive"),
        ("cosine", "tab:green", "cosine between particles' gradients"),
    ):
        curves(axes[0, 1], "svgd", "terms", name, colour, label)
    axes[0, 1].set(title="SVGD: who moves the weights", ylim=(-0.1, 1))
    for arm, colour in MAIN.items():
        curves(axes[0, 2], arm, "terms", "distance", colour, arm)
        curves(axes[1, 0], arm, "dev", "disagreement", colour, arm)
    axes[0, 2].set(title="distance between particles' weights", ylim=(0, None))
    axes[1, 0].set(title="1 - Dice between particles, dev", ylim=(0, None))
    for axis in (*axes[0], axes[1, 0]):
        axis.set_xlabel("training step")
        axis.legend(fontsize=8)

    names = list(groups)
    for axis, measure, title in (
        (axes[1, 1], "dice", "1 - Dice of the committee, dev"),
        (axes[1, 2], "brier", "Brier score near the reference, dev"),
    ):
        for row, group in enumerate(names):
            ends = [run["dev"][-1][measure] for run in groups[group]]
            values = [1 - end for end in ends] if measure == "dice" else ends
            axis.plot(values, [row] * len(values), "o", color=MAIN.get(group[1], "grey"), alpha=0.7)
        axis.set_yticks(range(len(names)), [f"{arm}, {task.removeprefix('hippocampus-')}" for task, arm in names])
        axis.invert_yaxis()
        axis.grid(axis="y", alpha=0.3)
        axis.set_title(title)
        axis.set_xscale("log", subs=(2, 3, 5))
        axis.set_xlabel("less is better; one point a seed")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("{x:g}")
    axes[1, 2].tick_params(labelleft=False)
    lines = [Line2D([], [], color="black", linestyle=style) for style in styles.values()]
    figure.legend(lines, tasks, loc="outside lower center", ncols=len(tasks))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
