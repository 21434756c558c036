"""What a report says in tables, worked out of the files of a run."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np

from svgd_label.errors import UserError
from svgd_label.experiments.dataset import Dataset
from svgd_label.experiments.experiment import BASELINES, FULL
from svgd_label.experiments.report.conclusion import beaten
from svgd_label.experiments.report.floor import floor
from svgd_label.experiments.report.statistics import (
    areas_by_volume,
    areas_of,
    bootstrap,
    interval,
    paired,
    summarise,
)
from svgd_label.experiments.run import Run

PAPER = {"hippocampus": 0.2269, "pancreas": 0.4885}
"""Share of the data with which the paper (Nath et al., IEEE TMI 2020) reached the accuracy of all labels."""

Steps = list[dict[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """An arm minus a baseline, in area under the curve."""

    arm: str
    baseline: str
    mean: float
    seeds: int
    over_seeds: tuple[float, float] | None
    over_volumes: tuple[float, float] | None
    p_holm: float | None
    claim: bool


@dataclass(frozen=True)
class Findings:
    """The arms and seeds of a run that have ended."""

    run: Run
    data: Path
    """The data set, which need not be there."""

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json."""
        return summarise(self.run)

    @cached_property
    def steps(self) -> dict[str, dict[int, Steps]]:
        """Arm -> seed -> the finished steps."""
        return {
            arm: {seed: self.run.track(arm, seed).steps() for seed in found["seeds"]}
            for arm, found in self.summary["arms"].items()
        }

    @cached_property
    def full(self) -> dict[int, Steps]:
        """Seed -> the trainings on all labels of the pool."""
        tracks = {seed: self.run.track(FULL, seed) for seed in self.run.config["seeds"]}
        return {seed: track.steps() for seed, track in tracks.items() if track.ended()}

    @property
    def claimed(self) -> str | None:
        """The arm of the claim, the first one."""
        return next(iter(self.run.arms), None)

    @property
    def paper(self) -> float | None:
        """The paper's share of the data, where it had this task."""
        return PAPER.get(self.run.base_task.name.split("-")[0])

    @property
    def mark(self) -> int | None:
        """The same in volumes of this pool."""
        return None if self.paper is None else ceil(self.paper * len(self.run.config["data"]["pool"]))

    @cached_property
    def floor(self) -> list[float] | str:
        """Dice of each structure without looking at the image, or why it is not known."""
        try:
            dataset = Dataset.read(self.data)
            known = {case.id: case for cases in dataset.splits.values() for case in cases}
            pool, evaluation = (
                [known[case] for case in self.run.config["data"][part]] for part in ("pool", "evaluation")
            )
            return floor(self.run.base_task, pool, evaluation)
        except KeyError as error:
            return f"{self.data} has no case {error}"
        except UserError as error:
            return str(error)

    @property
    def floor_mean(self) -> float | None:
        """The level of not looking at the image, mean over the structures that an evaluation volume has."""
        return None if isinstance(self.floor, str) else float(np.nanmean(self.floor))

    @cached_property
    def licence(self) -> str | None:
        """Name, source and licence of the data, as the Decathlon's dataset.json has them; None where it has none."""
        try:
            said = json.loads((self.data / "dataset.json").read_text(encoding="utf-8"))
            licence = said.get("licence") or said.get("license")
        except (OSError, ValueError, AttributeError):
            return None
        return (
            ", ".join(str(part) for part in (said.get("name"), said.get("reference"), licence) if part)
            if licence
            else None
        )

    def comparisons(self) -> list[Comparison]:
        """Every arm with every baseline that has seeds in common with it."""
        arms = self.summary["arms"]
        claims = beaten(arms[self.claimed]) if self.claimed in arms else []
        found = []
        for arm, entry in arms.items():
            for baseline in BASELINES:
                if entry[f"vs_{baseline}"] is None:
                    continue
                mean, low, high = entry[f"vs_{baseline}"]
                seeds = paired(self._areas, arm, baseline)
                apart = [self._by_volume[arm][seed] - self._by_volume[baseline][seed] for seed in seeds]
                found.append(
                    Comparison(
                        arm=arm,
                        baseline=baseline,
                        mean=mean,
                        seeds=len(seeds),
                        over_seeds=None if low is None else (low, high),
                        over_volumes=bootstrap(np.mean(apart, axis=0)),
                        p_holm=(entry["p_holm"] or {}).get(baseline),
                        claim=arm == self.claimed and baseline in claims,
                    )
                )
        return found

    def minus_claimed(self, arm: str) -> tuple[float, tuple[float, float] | None] | None:
        """An arm minus the claimed one, in area under the curve, over the seeds that both have: mean and interval."""
        if self.claimed is None or self.claimed == arm or self.claimed not in self._areas:
            return None
        values = np.array(list(paired(self._areas, arm, self.claimed).values()))
        return (float(values.mean()), interval(values)) if len(values) else None

    @property
    def seeds_differ(self) -> bool:
        """Whether some arms have seeds that others have not."""
        return len({tuple(areas) for areas in self._areas.values()}) > 1

    def wins(self) -> dict[str, dict[str, tuple[int, int] | None]]:
        """In how many of the common seeds an arm's area is above another's: arm -> other -> (won, seeds)."""
        matrix: dict[str, dict[str, tuple[int, int] | None]] = {}
        for arm in self._areas:
            matrix[arm] = {}
            for other in self._areas:
                apart = paired(self._areas, arm, other).values()
                won = sum(difference > 0 for difference in apart)
                matrix[arm][other] = None if arm == other or not apart else (won, len(apart))
        return matrix

    def at_budget(self, arm: str, budget: int) -> float:
        """Mean Dice at a number of labelled volumes."""
        entry = self.summary["arms"][arm]
        return float(np.mean(entry["dice"], axis=0)[budget - self.run.initial])

    def short(self) -> list[tuple[str, int, int, int]]:
        """Arms that were cut off before the budget: (arm, seed, labelled, trainings)."""
        return [
            (arm, seed, steps[-1]["distinct"], len(steps))
            for arm, seeds in self.steps.items()
            for seed, steps in seeds.items()
            if steps[-1]["distinct"] < self.run.budget
        ]

    def missing(self) -> dict[str, list[int]]:
        """Arm, or reference -> the seeds of the run that it has not, or not to its end."""
        ended = {**{arm: self.steps.get(arm, {}) for arm in self.run.arms}, "the reference": self.full}
        seeds = {name: [s for s in self.run.config["seeds"] if s not in found] for name, found in ended.items()}
        return {name: missing for name, missing in seeds.items() if missing}

    def needed(self, arm: str, share: Literal[99, 100]) -> int | str:
        """The labels with which an arm comes to a share of the full-data Dice; in words where it does not."""
        if not self.steps[arm].keys() <= self.full.keys():
            return "not known"
        number: int | None = self.summary["arms"][arm][f"distinct_to_{share}"]
        return "not reached" if number is None else number

    def unusable(self) -> dict[str, str]:
        """Volumes that could not be used, and why."""
        found: dict[str, str] = {}
        for step in self._lines():
            found |= step["unusable"]
        return found

    def computed_by(self, key: Literal["hardware", "package"]) -> list[str]:
        """The machines, or the versions of this package, that computed it."""
        return sorted({step[key] for step in self._lines() if key in step})

    def unsigned(self) -> tuple[int, int]:
        """How many trainings have not noted where they were computed, and of how many."""
        lines = self._lines()
        return sum("hardware" not in step for step in lines), len(lines)

    def reached(self, arm: str) -> int:
        """Distinct labelled volumes of the seed that came least far."""
        return min(int(steps[-1]["distinct"]) for steps in self.steps[arm].values())

    def often(self, arm: str, number: int) -> list[tuple[str, int, int]]:
        """The volumes that were picked most often: (id, times labelled, times picked again)."""
        first: Counter[str] = Counter()
        again: Counter[str] = Counter()
        for steps in self.steps[arm].values():
            for step in steps:
                first.update(step.get("queued", []))
                again.update(step.get("repeated", []))
        return [(image, first[image], again[image]) for image, _ in (first + again).most_common(number)]

    def tracks(self) -> dict[str, list[Steps]]:
        """The steps of each seed, of the arms and of the reference that learns from all labels."""
        named = {arm: list(seeds.values()) for arm, seeds in self.steps.items()}
        return named | ({"all labels": list(self.full.values())} if self.full else {})

    def trainings(self, tracks: Sequence[Steps]) -> float:
        """Mean over seeds."""
        return sum(len(steps) for steps in tracks) / len(tracks)

    def seconds(self, tracks: Sequence[Steps]) -> dict[str, float]:
        """Of training, measuring and scoring, mean over seeds."""
        return {
            part: sum(step["seconds"].get(part, 0.0) for steps in tracks for step in steps) / len(tracks)
            for part in ("train", "measure", "score")
        }

    @cached_property
    def _areas(self) -> dict[str, dict[int, float]]:
        return areas_of(self.summary)

    @cached_property
    def _by_volume(self) -> dict[str, dict[int, Any]]:
        budgets = self.summary["budget"]
        return {
            arm: {seed: areas_by_volume(steps, budgets) for seed, steps in seeds.items()}
            for arm, seeds in self.steps.items()
        }

    def _lines(self) -> list[dict[str, Any]]:
        return [step for tracks in self.tracks().values() for steps in tracks for step in steps]
