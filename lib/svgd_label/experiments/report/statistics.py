"""What a run has shown: curves over distinct labels, areas under them, paired intervals; and summary.json."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.integrate import trapezoid

from svgd_label.experiments.experiment import BASELINES, FULL
from svgd_label.experiments.run import Run, write_json

Vector = NDArray[np.float64]

SEEDS_FOR_INTERVALS = 5
VOLUMES_FOR_INTERVALS = 5
RESAMPLES = 10_000
"""Of the evaluation volumes."""


def curve(distinct: Sequence[int], dice: Sequence[float], budgets: Sequence[int]) -> Vector:
    """Dice of the last committee trained at each budget; linear in between, the last value after the last.

    Args:
        distinct: (trainings,), labelled volumes at each training, never falling.
        dice: (trainings,).
        budgets: where the curve is wanted.
    """
    last = dict(zip(distinct, dice, strict=True))  # of several at one budget, the last one stays
    values: Vector = np.interp(budgets, list(last), list(last.values()))
    return values


def aubc(values: Vector, budgets: Sequence[int]) -> float:
    """Mean height of a curve: 1/(B - b0) times its integral from b0 to B, by the trapezoid rule."""
    return float(trapezoid(values, budgets) / (budgets[-1] - budgets[0]))


def interval(values: Vector) -> tuple[float, float] | None:
    """The 95 % Student-t interval of a mean; None for fewer than five values."""
    if len(values) < SEEDS_FOR_INTERVALS:
        return None
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    mean = float(np.mean(values))
    return mean - half, mean + half


def areas_by_volume(steps: Sequence[Mapping[str, Any]], budgets: Sequence[int]) -> Vector:
    """The area under the curve of every evaluation volume and structure, (V, C); NaN where a structure is not there.

    Their mean over structures of the means over volumes is the area under the curve of the mean Dice.
    """
    values = np.array([list(step["volumes"].values()) for step in steps], dtype=np.float64)
    distinct = [step["distinct"] for step in steps]
    areas = [aubc(curve(distinct, one, budgets), budgets) for one in values.reshape(len(steps), -1).T.tolist()]
    return np.reshape(areas, values.shape[1:])


def bootstrap(differences: Vector) -> tuple[float, float] | None:
    """The 95 % percentile interval of a mean over volumes that are drawn with replacement; None for fewer than five.

    Args:
        differences: (V, C), of a pair of arms for each volume and structure, NaN where a structure is not there.
    """
    volumes = len(differences)
    if volumes < VOLUMES_FOR_INTERVALS:
        return None
    drawn = np.random.default_rng(0).multinomial(volumes, np.full(volumes, 1 / volumes), size=RESAMPLES)
    known = np.isfinite(differences)
    with np.errstate(invalid="ignore"):  # a sample may have drawn no volume with a rare structure
        means = drawn @ np.where(known, differences, 0.0) / (drawn @ known)
    low, high = np.nanquantile(np.nanmean(means, axis=1), (0.025, 0.975))
    return float(low), float(high)


def paired_p(differences: Vector) -> float | None:
    """Two-sided p of the paired t-test; None for fewer than five pairs."""
    if len(differences) < SEEDS_FOR_INTERVALS:
        return None
    if not np.ptp(differences):
        return float(not differences[0])
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def holm(p: dict[str, float], of: int) -> dict[str, float]:
    """Holm's adjusted p-values (Scandinavian Journal of Statistics 6:65, 1979).

    Args:
        p: of the comparisons that have been made.
        of: how many there are to be; those that are still to come may turn out to be the surest.
    """
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p, key=p.__getitem__)):
        highest = max(highest, min(1.0, (of - rank) * p[name]))
        adjusted[name] = highest
    return adjusted


def areas_of(summary: Mapping[str, Any]) -> dict[str, dict[int, float]]:
    """The area under the curve of every arm and seed of a summary."""
    return {
        arm: {seed: aubc(values, summary["budget"]) for seed, values in zip(found["seeds"], found["dice"], strict=True)}
        for arm, found in summary["arms"].items()
    }


def paired(areas: Mapping[str, Mapping[int, float]], arm: str, other: str) -> dict[int, float]:
    """Seed -> how far an arm's area lies above another's, of the seeds that both have."""
    return {seed: area - areas[other][seed] for seed, area in areas[arm].items() if seed in areas[other]}


def summarise(run: Run) -> dict[str, Any]:
    """The content of summary.json, from the arms and seeds that have ended.

    ``p_holm`` adjusts over the comparisons of the first arm, the claimed one, with all baselines of the run, those too
    that have not ended; null for the others.
    """
    seeds = run.config["seeds"]
    budgets = list(range(run.initial, run.budget + 1))
    full = {seed: run.track(FULL, seed).steps()[-1]["mean_dice"] for seed in seeds if run.track(FULL, seed).ended()}
    raw = {
        arm: {seed: run.track(arm, seed).steps() for seed in seeds if run.track(arm, seed).ended()} for arm in run.arms
    }
    arms: dict[str, Any] = {}
    for arm, tracks in raw.items():
        if not tracks:
            continue
        distinct = [[step["distinct"] for step in steps] for steps in tracks.values()]
        dice = [[step["mean_dice"] for step in steps] for steps in tracks.values()]
        curves = [curve(*track, budgets) for track in zip(distinct, dice, strict=True)]
        own = np.array([aubc(values, budgets) for values in curves])
        # The level of the same seeds: that of others may lie higher or lower.
        level = np.mean([full[seed] for seed in tracks]) if tracks.keys() <= full.keys() else None
        reached = {
            f"distinct_to_{share}": _first(budgets, np.mean(curves, axis=0), level, share) for share in (99, 100)
        }
        arms[arm] = {
            "seeds": list(tracks),
            "dice": [values.tolist() for values in curves],
            "raw": {"distinct": distinct, "dice": dice, "trainings": [[s["step"] for s in t] for t in tracks.values()]},
            "aubc": float(own.mean()),
            "aubc_ci": interval(own),
            **dict.fromkeys([f"vs_{baseline}" for baseline in BASELINES]),
            "p_holm": None,
            **reached,
        }
    summary = {
        "task": run.base_task.name,
        "full_data_dice": float(np.mean(list(full.values()))) if full else None,
        "budget": budgets,
        "arms": arms,
    }
    areas = areas_of(summary)
    for arm in arms:
        p: dict[str, float] = {}
        for baseline in BASELINES:
            if baseline == arm or baseline not in arms:
                continue
            differences = np.array(list(paired(areas, arm, baseline).values()))
            if not len(differences):
                continue
            low, high = interval(differences) or (None, None)
            arms[arm][f"vs_{baseline}"] = [float(differences.mean()), low, high]
            if (value := paired_p(differences)) is not None:
                p[baseline] = value
        if arm == run.arms[0] and p:
            arms[arm]["p_holm"] = holm(p, of=len({*BASELINES} & {*run.arms} - {arm}))
    return summary


def write_summary(run: Run) -> None:
    """Writes summary.json into the run's folder."""
    write_json(run.folder / "summary.json", summarise(run), indent=2)


def _first(budgets: Sequence[int], mean: Vector, full: float | None, percent: int) -> int | None:
    """The first budget at which the mean curve reaches so much of the full-data Dice."""
    if full is None:
        return None
    reached = np.flatnonzero(mean >= percent / 100 * full)
    return budgets[reached[0]] if len(reached) else None
