"""The one sentence that a run allows: what the claimed arm is shown to beat, and what it is not."""

from collections.abc import Mapping, Sequence
from typing import Any

from svgd_label.experiments.experiment import BASELINES
from svgd_label.experiments.report.statistics import SEEDS_FOR_INTERVALS

LEVEL = 0.05


def beaten(arm: Mapping[str, Any]) -> list[str]:
    """The baselines over which an arm of summary.json may claim a gain.

    Both are needed: an unadjusted 95 % interval above zero, and a Holm-adjusted p under 0.05.
    """
    p = arm["p_holm"] or {}
    return [name for name in BASELINES if p.get(name, 1.0) < LEVEL and arm[f"vs_{name}"][1] > 0]


def _behind(arm: Mapping[str, Any]) -> list[str]:
    """The baselines that are ahead of it, by the same rule."""
    p = arm["p_holm"] or {}
    return [name for name in BASELINES if p.get(name, 1.0) < LEVEL and arm[f"vs_{name}"][2] < 0]


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
    won, lost = beaten(arm), _behind(arm)
    verdicts = {
        "beats {}": (won, "and"),
        "is worse than {}": (lost, "and"),
        "is not shown to beat {}": ([name for name in tested if name not in (*won, *lost)], "or"),
    }
    parts = [(words.format(_listed(names, last)), names) for words, (names, last) in verdicts.items() if names]
    parts.sort(key=lambda part: "random" not in part[1])  # what it is against chance comes first
    but = "but" if len(parts) == 2 and won else "and"
    verdict = f"{claimed} {_listed([words for words, _ in parts], but)}"
    if untested := [name for name in compared if name not in tested]:
        verdict += f"; it shares too few seeds with {_listed(untested)} for a claim"
    if "random" in tested and "random" not in won:
        others = [name for name, other in arms.items() if name != claimed and _above_random(other)]
        verdict += (
            f"; of the others, {_listed(others)} {'has' if len(others) == 1 else 'have'} an interval above random, but "
            f"{'was' if len(others) == 1 else 'were'} not the claim: that needs other seeds"
            if others
            else "; no other arm is shown to beat random"
        )
    return f"{verdict}."


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
    cheaper = [n for n in _compared(arm) if arm[f"vs_{n}"][0] > 0 and trainings[n] < trainings[claimed]]
    if cheaper:
        others = _listed([f"{name} {trainings[name]:.3g}" for name in cheaper])
        sentences.append(
            f"It trained {trainings[claimed]:.3g} times, {others}, and training more often may gain Dice too."
        )
    for compared in trainings:
        ends = [distinct[-1] for distinct in arms[compared]["raw"]["distinct"]]
        if short := [end for end in ends if end < last]:
            sentences.append(
                f"{compared} was cut off in {len(short)} of {len(ends)} seeds, at {_range(short)} volumes; "
                "its last Dice stands for the rest."
            )
    return " ".join(sentences)


def _trainings(arm: Mapping[str, Any]) -> float:
    counts = [len(steps) for steps in arm["raw"]["trainings"]]
    return sum(counts) / len(counts)


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


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
