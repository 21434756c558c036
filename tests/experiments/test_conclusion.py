"""The first line of a report claims what the figures allow, and no more."""

from typing import Any

import pytest

from svgd_label.experiments.report.conclusion import beaten, conclude, evidence

Difference = list[float | None] | None


def arm(
    random: Difference = None,
    clasp_pe: Difference = None,
    p: dict[str, float] | None = None,
    distinct: tuple[int, ...] = (10, 11, 12),
) -> dict[str, Any]:
    raw = {"distinct": [list(distinct)], "trainings": [list(range(1, len(distinct) + 1))]}
    return {"vs_random": random, "vs_random_foreground": None, "vs_clasp_pe": clasp_pe, "p_holm": p, "raw": raw}


def summary(**arms: dict[str, Any]) -> dict[str, Any]:
    return {"budget": [10, 11, 12], "arms": arms}


UP, DOWN, OPEN, FEW = [0.02, 0.01, 0.03], [-0.02, -0.03, -0.01], [0.01, -0.01, 0.03], [0.02, None, None]


@pytest.mark.parametrize(
    ("ours", "sentence"),
    [
        (arm(UP, UP, {"random": 0.01, "clasp_pe": 0.02}), "ours beats random and clasp_pe."),
        (arm(UP, OPEN, {"random": 0.01, "clasp_pe": 0.2}), "ours beats random but is not shown to beat clasp_pe."),
        (arm(UP, FEW, {"random": 0.01}), "ours beats random; it shares too few seeds with clasp_pe for a claim."),
        (arm(UP, DOWN, {"random": 0.01, "clasp_pe": 0.01}), "ours beats random but is worse than clasp_pe."),
        (arm(UP, DOWN, {"random": 0.01, "clasp_pe": 0.06}), "ours beats random but is not shown to beat clasp_pe."),
        (
            arm(DOWN, UP, {"random": 0.01, "clasp_pe": 0.01}),
            "ours is worse than random but beats clasp_pe; no other arm is shown to beat random.",
        ),
        (
            arm(OPEN, DOWN, {"random": 0.2, "clasp_pe": 0.01}),
            "ours is not shown to beat random and is worse than clasp_pe; no other arm is shown to beat random.",
        ),
        (arm(None, OPEN, {"clasp_pe": 0.2}), "ours is not shown to beat clasp_pe."),
        (
            arm(FEW, [-0.01, None, None]),
            "No claim can be made with fewer than 5 seeds; so far, ours lies above random and not above clasp_pe.",
        ),
        (
            arm(),
            "Nothing can be concluded: "
            "ours has no baseline (random, random_foreground, clasp_pe) with a seed in common.",
        ),
    ],
)
def test_the_sentence_is_that_of_the_intervals(ours: dict[str, Any], sentence: str) -> None:
    assert conclude(summary(ours=ours, random=arm()), "ours") == sentence


@pytest.mark.parametrize(
    ("random", "p", "verdict"),
    [
        (DOWN, 0.001, "is worse than random"),
        (OPEN, 0.2, "is not shown to beat random"),
        (UP, 0.051, "is not shown to beat random"),  # the interval alone is not enough
        (OPEN, 0.049, "is not shown to beat random"),  # nor is the p-value
    ],
)
def test_the_first_line_says_so_if_nothing_beats_random(random: list[float | None], p: float, verdict: str) -> None:
    ours = arm(random, None, {"random": p})
    # What was run with few seeds only is not said to be no better.
    found = conclude(summary(ours=ours, other=arm(OPEN), few=arm(FEW), random=arm()), "ours")
    assert found == f"ours {verdict}; no other arm is shown to beat random."
    assert beaten(ours) == []


def test_an_arm_that_was_not_the_claim_is_named_but_claims_nothing() -> None:
    found = conclude(summary(ours=arm(OPEN, None, {"random": 0.2}), other=arm(UP), random=arm()), "ours")
    assert found == (
        "ours is not shown to beat random; of the others, other has an interval above random, but was not the claim: "
        "that needs other seeds."
    )


def test_what_has_not_ended_concludes_nothing() -> None:
    assert "ours, the arm of the claim, has not ended" in conclude(summary(random=arm()), "ours")
    assert "only the full-data reference" in conclude(summary(), None)
    assert evidence(summary(random=arm()), "ours") is None


def test_the_figures_stand_behind_the_sentence() -> None:
    found = evidence(summary(ours=arm(UP, FEW, {"random": 0.012}), random=arm(), clasp_pe=arm()), "ours")
    assert found == (
        "Between 10 and 12 labelled volumes, the mean Dice of ours is 0.0200 above random "
        "(95 % interval +0.0100 to +0.0300, adjusted p 0.012) and 0.0200 above clasp_pe."
    )


def test_the_price_of_a_gain_in_trainings_and_where_an_arm_was_cut_off_are_said() -> None:
    ours = arm(UP, UP, {"random": 0.012, "clasp_pe": 0.012}, distinct=(10, 10, 11, 11))
    ours["raw"]["distinct"].append([10, 11, 11, 12])
    found = evidence(summary(ours=ours, random=arm(), clasp_pe=arm(distinct=(10, 10, 10, 10))), "ours")
    assert found is not None
    assert found.endswith(
        ". It trained 4 times, random 3, and training more often may gain Dice too. "
        "ours was cut off in 1 of 2 seeds, at 11 volumes; its last Dice stands for the rest. "
        "clasp_pe was cut off in 1 of 1 seeds, at 10 volumes; its last Dice stands for the rest."
    )
    behind = arm(DOWN, None, {"random": 0.012}, distinct=(10, 11, 11, 12))
    assert "trained" not in str(evidence(summary(ours=behind, random=arm()), "ours"))
