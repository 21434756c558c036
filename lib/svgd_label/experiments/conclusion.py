"""The one sentence that a run allows: what the claimed arm is shown to beat, and what it is not."""

from collections.abc import Mapping, Sequence
from typing import Any

from svgd_label.experiments.statistics import BASELINES, SEEDS_FOR_INTERVALS

LEVEL = 0.05


def beaten(arm: Mapping[str, Any]) -> list[str]:
    """The baselines over which an arm of summary.json may claim a gain.

    Both are needed: an unadjusted 95 % interval above zero, and a Holm-adjusted p under 0.05.
    """
    p = arm["p_holm"] or {}
    return [name for name in BASELINES if p.get(name, 1.0) < LEVEL and arm[f"vs_{name}"][1] > 0]


def conclude(summary: Mapping[str, Any], claimed: str | None) -> str:
    """One sentence, which claims no more than the figures do.

    Args:
        summary: the content of summary.json.
        claimed: the first arm of the run; None where there is none.
    """
    arms: Mapping[str, Any] = summary["arms"]
    if claimed is None:
        return "This run compares nothing: only the full-data reference was trained."
    if claimed not in arms:
        return f"Nothing can be concluded yet: {claimed}, the arm of the claim, has not ended for any seed."
    arm = arms[claimed]
    compared = _compared(arm)
    if not compared:
        return f"Nothing can be concluded: {claimed} has no baseline ({', '.join(BASELINES)}) with a seed in common."
    tested = [name for name in compared if name in (arm["p_holm"] or {})]
    if not tested:
        return f"No claim can be made with fewer than {SEEDS_FOR_INTERVALS} seeds; so far, {_so_far(arm, claimed)}."
    won = beaten(arm)
    lost = [name for name in tested if name not in won]
    untested = [name for name in compared if name not in tested]
    few = f"; it shares too few seeds with {_listed(untested)} for a claim" if untested else ""
    if "random" in lost:
        others = [name for name, other in arms.items() if name != claimed and _above_random(other)]
        though = f", though it beats {_listed(won)}" if won else ""
        none = ", and no arm is shown to beat it" if not others and not won else ""
        hint = f"; {_listed(others)} did, which was not the claim and needs other seeds to be shown" if others else ""
        worse = arm["vs_random"][2] < 0
        verdict = f"is {'worse than' if worse else 'not shown to beat'} random{none}"
        return f"{claimed} {verdict}{though}{hint}{few}."
    parts = [f"beats {_listed(won)}"] if won else []
    parts += [f"is not shown to beat {_listed(lost, 'or')}"] if lost else []
    return f"{claimed} {' but '.join(parts)}{few}."


def evidence(summary: Mapping[str, Any], claimed: str | None) -> str | None:
    """The figures behind the sentence; None where there are none."""
    arms = summary["arms"]
    if claimed not in arms or not _compared(arm := arms[claimed]):
        return None
    said = []
    for name in _compared(arm):
        mean, low, high = arm[f"vs_{name}"]
        interval = ""
        if low is not None:
            interval = f" (95 % interval {low:+.4f} to {high:+.4f}, adjusted p {arm['p_holm'][name]:.2g})"
        said.append(f"{abs(mean):.4f} {'above' if mean > 0 else 'below'} {name}{interval}")
    first, last = summary["budget"][0], summary["budget"][-1]
    sentences = [f"Between {first} and {last} labelled volumes, the mean Dice of {claimed} is {_listed(said)}."]
    trainings = {name: _trainings(arms[name]) for name in (claimed, *_compared(arm))}
    if trainings[claimed] > max(trainings[name] for name in _compared(arm)):
        others = _listed([f"{name} {trainings[name]:.3g}" for name in _compared(arm)])
        sentences.append(
            f"For that it trained {trainings[claimed]:.3g} times, {others}: training more often gains Dice too."
        )
    reached = [distinct[-1] for distinct in arm["raw"]["distinct"]]
    if min(reached) < last:
        sentences.append(f"It was cut off at {min(reached)} volumes or later, and its last Dice stands for the rest.")
    return " ".join(sentences)


def _trainings(arm: Mapping[str, Any]) -> float:
    counts = [len(steps) for steps in arm["raw"]["trainings"]]
    return sum(counts) / len(counts)


def _compared(arm: Mapping[str, Any]) -> list[str]:
    return [name for name in BASELINES if arm[f"vs_{name}"]]


def _so_far(arm: Mapping[str, Any], claimed: str) -> str:
    above = [name for name in _compared(arm) if arm[f"vs_{name}"][0] > 0]
    below = [name for name in _compared(arm) if name not in above]
    parts = [f"{word} {_listed(names)}" for word, names in (("above", above), ("not above", below)) if names]
    return f"{claimed} lies {' and '.join(parts)}"


def _above_random(arm: Mapping[str, Any]) -> bool:
    against: Sequence[float | None] | None = arm["vs_random"]
    return against is not None and against[1] is not None and against[1] > 0


def _listed(words: Sequence[str], last: str = "and") -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"
