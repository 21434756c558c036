"""Curves, areas and intervals against numbers that can be worked out on paper, and against scipy and its kin."""

import math

import numpy as np
import pytest
from scipy import stats
from tests.experiments.conftest import line

from svgd_label.experiments.report.statistics import (
    areas_by_volume,
    aubc,
    bootstrap,
    curve,
    holm,
    interval,
    paired_p,
    summarise,
)
from svgd_label.experiments.run import Run


def test_the_last_committee_of_a_budget_counts_and_lines_lead_from_one_to_the_next() -> None:
    budgets = [10, 11, 12, 13, 14, 15, 16]
    values = curve([10, 12, 12, 14], [0.2, 0.1, 0.6, 0.8], budgets)
    assert values.tolist() == pytest.approx([0.2, 0.4, 0.6, 0.7, 0.8, 0.8, 0.8])


def test_the_area_is_the_mean_height() -> None:
    assert aubc(np.full(5, 0.7), [10, 11, 12, 13, 14]) == pytest.approx(0.7)
    assert aubc(np.array([0.0, 1.0]), [10, 20]) == pytest.approx(0.5)
    # A triangle of base 2 of 4: half of its height 1, over half of the way.
    assert aubc(np.array([0.0, 1.0, 0.0, 0.0, 0.0]), [0, 1, 2, 3, 4]) == pytest.approx(0.25)


def test_students_interval_of_five_numbers() -> None:
    # Mean 3, standard deviation sqrt(2.5), t(0.975, 4) = 2.776445 from the tables.
    half = 2.776445105 * math.sqrt(2.5) / math.sqrt(5)
    assert interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0])) == pytest.approx((3 - half, 3 + half))
    assert interval(np.array([1.0, 2.0, 3.0, 4.0])) is None


def test_the_p_value_is_the_paired_t_tests() -> None:
    a, b = np.array([0.81, 0.83, 0.80, 0.85, 0.84]), np.array([0.80, 0.80, 0.81, 0.82, 0.83])
    assert paired_p(a - b) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert paired_p((a - b)[:4]) is None
    assert paired_p(np.zeros(5)) == 1.0


def test_holms_own_steps() -> None:
    # Three hypotheses: 3 * 0.01, then the larger of that and 2 * 0.04, then the larger of that and 0.03 * 1 - in order.
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}, of=3) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8}, of=2) == {"a": 1.0, "b": 1.0}
    assert holm({"a": 0.02}, of=3) == pytest.approx({"a": 0.06})  # two are still to come


def test_the_areas_of_the_volumes_average_to_the_area_of_the_mean_dice() -> None:
    # Two structures; the second is not in the second volume, and counts with the two others only.
    volumes = np.array([[[0.2, 0.4], [0.6, np.nan], [0.4, 0.8]], [[0.4, 0.8], [0.8, np.nan], [0.9, 0.9]]])
    lines = [
        {"distinct": distinct, "volumes": {str(number): row for number, row in enumerate(values.tolist())}}
        for distinct, values in zip((10, 12), volumes, strict=True)
    ]
    areas = areas_by_volume(lines, [10, 11, 12])
    assert areas[0].tolist() == pytest.approx([0.3, 0.6])
    assert np.isnan(areas[1, 1])
    means = np.nanmean(np.nanmean(volumes, axis=1), axis=1)
    assert np.nanmean(np.nanmean(areas, axis=0)) == pytest.approx(aubc(means, [10, 11, 12]))


def test_the_bootstrap_of_volumes_that_win_or_not_is_a_binomial() -> None:
    won = np.repeat([1.0, 0.0], [16, 24])[:, None]
    expected = stats.binom.ppf([0.025, 0.975], 40, 0.4) / 40
    assert bootstrap(won) == pytest.approx(expected.tolist())
    assert bootstrap(np.full((7, 2), 0.25)) == pytest.approx((0.25, 0.25))
    assert bootstrap(won[:4]) is None


def test_the_bootstrap_is_scipys_and_a_structure_counts_where_it_is() -> None:
    rng = np.random.default_rng(3)
    differences = rng.normal(0.01, 0.02, size=(30, 2))
    differences[:20, 1] = np.nan

    def mean(rows: list[int]) -> float:
        return float(np.nanmean(np.nanmean(differences[rows], axis=0)))

    theirs = stats.bootstrap((range(30),), mean, method="percentile", vectorized=False, n_resamples=4000)
    assert bootstrap(differences) == pytest.approx(list(theirs.confidence_interval), abs=0.0006)


def test_the_summary_pairs_seeds_and_leaves_out_what_has_not_ended(run: Run) -> None:
    found = summarise(run)
    assert set(found) == {"task", "full_data_dice", "budget", "arms"}
    assert found["full_data_dice"] == pytest.approx(0.9)
    assert found["budget"] == list(range(10, 21))
    ours = found["arms"]["entropy_mi"]
    assert ours["seeds"] == [0, 1, 2, 3, 4, 5]
    assert ours["aubc"] == pytest.approx(0.6 + 0.045)
    sd = math.sqrt(3.5e-4)
    half = 2.570581836 * sd / math.sqrt(6)
    assert ours["vs_random"] == pytest.approx([0.045, 0.045 - half, 0.045 + half])
    assert ours["aubc_ci"] == pytest.approx([0.645 - half, 0.645 + half])
    assert ours["vs_random_foreground"] is None
    clasp = found["arms"]["clasp_pe"]
    assert clasp["seeds"] == [1, 2, 3, 4, 5]
    assert clasp["raw"]["distinct"] == [[10, 15, 15]] * 5
    assert clasp["raw"]["trainings"] == [[1, 2, 3]] * 5
    # 10 -> 15 from 0.5 to v, then v to the end: v - (v - 0.5) / 4.
    last = np.array([0.9 - 0.3 * (0.02 + 0.01 * seed) for seed in range(1, 6)])
    expected = last - (last - 0.5) / 4
    assert clasp["aubc"] == pytest.approx(expected.mean())
    paired = np.array([0.62 + 0.01 * seed for seed in range(1, 6)]) - expected
    assert ours["vs_clasp_pe"][0] == pytest.approx(paired.mean())
    p = {"random": paired_p(np.arange(0.02, 0.071, 0.01)), "clasp_pe": paired_p(paired)}
    assert ours["p_holm"] == pytest.approx(holm({name: float(value or 0) for name, value in p.items()}, of=2))
    assert found["arms"]["random"]["p_holm"] is None
    assert found["arms"]["random"]["vs_random"] is None


def test_the_first_budget_with_99_percent_is_that_of_the_mean_curve(run: Run) -> None:
    found = summarise(run)["arms"]
    assert found["random"]["distinct_to_99"] is None
    # The mean ends at 0.8865: 0.891 it never reaches, though single seeds do.
    assert max(dice[-1] for dice in found["clasp_pe"]["dice"]) == pytest.approx(0.891)
    assert found["clasp_pe"]["distinct_to_99"] is None
    run.track("full", 1).append(line(2, 160, 0.9 - 5 * 0.05, last=True))
    again = summarise(run)
    assert again["full_data_dice"] == pytest.approx(0.9 - 0.25 / 6)
    # Of its own five seeds: 0.85, of which 99 % are 0.8415, between 14 (0.8112) and 15 (0.885 or so); 100 % as well.
    assert (again["arms"]["clasp_pe"]["distinct_to_99"], again["arms"]["clasp_pe"]["distinct_to_100"]) == (15, 15)
    assert again["arms"]["entropy_mi"]["distinct_to_99"] is None


def test_a_share_of_all_labels_is_of_the_same_seeds(run: Run) -> None:
    run.track("full", 0).append(line(2, 160, -0.1, last=True))  # of a seed that clasp_pe has not
    found = summarise(run)["arms"]
    assert found["clasp_pe"]["distinct_to_99"] is None
    assert found["entropy_mi"]["distinct_to_99"] == 20  # it ends at 0.745, and 99 % of (5 * 0.9 - 0.1) / 6 are 0.726
    (run.folder / "full" / "seed-3" / "steps.jsonl").unlink()
    found = summarise(run)["arms"]
    assert found["entropy_mi"]["distinct_to_99"] is None  # whose level is not known yet
