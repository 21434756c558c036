"""A report shows what a run has found, on one page that needs nothing else."""

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from tests.experiments.conftest import line, steps
from typer.testing import CliRunner

from svgd_label.cli import app
from svgd_label.experiments.experiment import ExperimentError
from svgd_label.experiments.report.figures import AGAIN, FIRST, picks
from svgd_label.experiments.report.findings import Findings
from svgd_label.experiments.report.page import write_report
from svgd_label.experiments.report.statistics import summarise
from svgd_label.experiments.run import Run

ADDRESSES = ("src", "href", "xlink:href", "data", "action", "poster", "srcset")


class Page(HTMLParser):
    """What a browser would load, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ADDRESSES]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="session")
def written(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a real run of one seed, by the command."""
    out = tmp_path_factory.mktemp("report") / "out"
    result = CliRunner().invoke(app, ["report", str(finished), "--out", str(out), "--licence", "Blobs, CC0"])
    assert result.exit_code == 0, result.output
    assert str(out / "report.html") in result.output.replace("\n", "")
    return out


def test_the_page_needs_nothing_else_and_shows_every_pick(written: Path, finished: Path) -> None:
    page = Page(written / "report.html")
    assert page.tags.count("svg") == 4
    picked = {
        (arm, image)
        for arm in Run.open(finished).arms
        for step in steps(finished, arm)
        for image in (*step.get("queued", []), *step.get("repeated", []))
    }
    assert page.tags.count("img") == len(picked) >= 6
    assert "script" not in page.tags
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert len(set(page.ids)) == len(page.ids)
    assert "url(http" not in (written / "report.html").read_text()


def test_the_figures_are_files_too_and_the_numbers_are_the_summarys(written: Path, finished: Path) -> None:
    for name in ("labels", "trainings", "differences", "picks"):
        assert ElementTree.parse(written / f"{name}.svg").getroot().tag.endswith("svg")
        assert (written / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((written / "summary.json").read_text()) == json.loads((finished / "summary.json").read_text())


def test_the_table_in_markdown_has_a_row_for_each_arm(run: Run, tmp_path: Path) -> None:
    write_report(run, tmp_path)
    rows = [row.split(" | ") for row in (tmp_path / "table.md").read_text().splitlines() if row.startswith("| `")]
    arms = summarise(run)["arms"]
    assert [row[0] for row in rows] == [f"| `{arm}`" for arm in arms]
    for row, entry in zip(rows, arms.values(), strict=True):
        assert row[1:3] == [
            str(len(entry["seeds"])),
            "{:.4f} ({:.4f} to {:.4f})".format(entry["aubc"], *entry["aubc_ci"]),
        ]
        against = entry["vs_random"]
        assert row[3] == ("–" if against is None else "{:+.4f} ({:+.4f} to {:+.4f})".format(*against).replace("-", "−"))
    assert [row[4].split(" ")[0] for row in rows] == ["–", "−0.0450", f"{-arms['entropy_mi']['vs_clasp_pe'][0]:+.4f}"]
    assert rows[0][5:] == ["not reached", "20", "2 |"]


def test_arms_with_other_seeds_are_told_apart_from_those_that_compare(run: Run, tmp_path: Path) -> None:
    apart = "areas of arms with other seeds do not compare"
    page = Page(write_report(run, tmp_path))
    assert apart in (tmp_path / "table.md").read_text()
    assert "Arms with other seeds do not compare by their areas" in page.text
    assert "clasp_pe, 5 seeds" in (tmp_path / "labels.svg").read_text()
    track = run.track("clasp_pe", 0)
    track.append({**track.steps()[-1], "last": True})
    page = Page(write_report(run, tmp_path))
    assert apart not in (tmp_path / "table.md").read_text()
    assert "Arms with other seeds" not in page.text
    assert "5 seeds" not in (tmp_path / "labels.svg").read_text()


def test_a_number_of_labels_that_not_all_seeds_came_to_is_marked(run: Run, tmp_path: Path) -> None:
    for seed in range(6):
        run.track("full", seed).append(line(2, 160, 0.8, last=True))
        track = run.track("clasp_pe", seed)
        track.append(line(4, 15 if seed else 11, 0.83, last=True))
    write_report(run, tmp_path)
    row = next(row for row in (tmp_path / "table.md").read_text().splitlines() if row.startswith("| `clasp_pe`"))
    assert row.split(" | ")[5:7] == ["15 \\*", "11"]
    assert "\\* Not all seeds came so far" in (tmp_path / "table.md").read_text()


def test_one_seed_allows_no_claim_and_the_page_says_what_is_what(written: Path) -> None:
    text = Page(written / "report.html").text
    assert "No claim can be made with fewer than 5 seeds; so far, entropy_mi_delete lies" in text
    summary = json.loads((written / "summary.json").read_text())
    assert f"All labels: {summary['full_data_dice']:.4f}." in text
    assert f"{summary['arms']['random']['aubc']:.4f}" in text
    assert "Not looking at the image: 0." in text
    assert "the paper's mark" not in text.casefold()  # it had no such task


def test_volumes_are_shown_with_their_licence_or_not_at_all(written: Path, finished: Path, tmp_path: Path) -> None:
    assert "Blobs, CC0" in Page(written / "report.html").text
    assert "Blobs, CC0" in (written / "LICENCE-pictures.txt").read_text()
    page = Page(write_report(Run.open(finished), tmp_path))  # the data set has no dataset.json
    assert "img" not in page.tags
    assert "the licence of the data is not known" in page.text
    assert not (tmp_path / "LICENCE-pictures.txt").exists()


def test_name_source_and_licence_are_read_from_the_data_set(run: Run, tmp_path: Path) -> None:
    found = Findings(run, tmp_path)
    assert found.licence is None
    said: Any = {"name": "Hippocampus", "reference": "Vanderbilt", "licence": "CC-BY-SA 4.0"}
    (tmp_path / "dataset.json").write_text(json.dumps(said))
    assert Findings(run, tmp_path).licence == "Hippocampus, Vanderbilt, CC-BY-SA 4.0"
    (tmp_path / "dataset.json").write_text(json.dumps({"name": "Hippocampus"}))
    assert Findings(run, tmp_path).licence is None


def test_what_stopped_short_and_what_has_not_ended_is_named(run: Run, tmp_path: Path) -> None:
    text = Page(write_report(run, tmp_path)).text
    assert "entropy_mi beats random" in text
    assert "clasp_pe, seed 3, stopped short of the budget: 15 of 20 volumes after 3 trainings" in text
    assert "clasp_pe, seed 0, stopped short" not in text
    table = text[text.index("volumes to 99 %") : text.index("* A seed of this arm was cut off")]
    assert table.count("*") == 1  # at the end of clasp_pe
    assert "Not run, or not to the end, and so not in this report: clasp_pe with seed 0." in text
    assert "The level of not looking at the image is left out: there is no /nowhere/splits.json" in text


def test_the_comparisons_have_intervals_over_seeds_and_over_volumes(run: Run) -> None:
    found = {(row.arm, row.baseline): row for row in Findings(run, Path("/nowhere")).comparisons()}
    row = found["entropy_mi", "random"]
    assert row.mean == pytest.approx(0.045)
    assert row.over_seeds == pytest.approx(summarise(run)["arms"]["entropy_mi"]["vs_random"][1:])
    assert row.over_volumes == pytest.approx((0.045, 0.045))  # every volume gains alike
    assert row.claim
    assert row.p_holm is not None
    assert row.p_holm < 0.05
    assert found["clasp_pe", "random"].seeds == 5
    assert not found["clasp_pe", "random"].claim  # its interval lies above zero, but it is not the arm of the claim


def test_the_matrix_counts_the_seeds_that_both_have(run: Run) -> None:
    wins = Findings(run, Path("/nowhere")).wins()
    assert wins["entropy_mi"]["random"] == (6, 6)
    assert wins["random"]["entropy_mi"] == (0, 6)
    assert wins["clasp_pe"]["random"] == (5, 5)
    assert wins["random"]["random"] is None


def test_picks_are_counted_over_seeds(run: Run) -> None:
    found = Findings(run, Path("/nowhere"))
    assert sorted(found.often("entropy_mi", 5)) == [("b", 6, 0), ("c", 0, 6)]
    assert found.often("clasp_pe", 5) == []


def test_a_volume_that_seeds_labelled_or_repeated_has_the_mixed_colour() -> None:
    seeds = [[{"queued": ["a"]}], [{"queued": ["a"]}], [{"repeated": ["a"]}], [{"repeated": ["b"]}]]
    shades = picks({"arm": seeds}, ["a", "b", "c"]).axes[0].images[0].get_array()
    assert shades is not None
    first, again = (np.array(to_rgb(colour)) for colour in (FIRST, AGAIN))
    np.testing.assert_allclose(shades[0, 0], [*((2 * first + again) / 3), 0.3 + 0.7 * 3 / 4])
    np.testing.assert_allclose(shades[0, 1], [*again, 0.3 + 0.7 / 4])
    assert shades[0, 2, 3] == 0


def test_text_of_the_run_is_text_on_the_page(run: Run, tmp_path: Path) -> None:
    task = {**run.config["task"], "labels": ["<script>alert(1)</script>"]}
    page = Page(write_report(replace(run, config={**run.config, "task": task}), tmp_path))
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in page.text


def test_the_mark_of_the_paper_is_a_share_of_the_pool(run: Run) -> None:
    task = {**run.config["task"], "name": "hippocampus-cpu"}
    data = {**run.config["data"], "pool": [str(number) for number in range(160)]}
    found = Findings(replace(run, config={**run.config, "task": task, "data": data}), Path("/nowhere"))
    assert found.mark == 37
    assert Findings(run, Path("/nowhere")).mark is None


def test_figures_for_choices_say_so(run: Run, tmp_path: Path) -> None:
    page = Page(write_report(replace(run, config={**run.config, "split": "dev"}), tmp_path))
    assert "these figures are for choices, not for publishing" in page.text


def test_a_run_without_results_is_refused_and_one_with_the_reference_alone_is_shown(run: Run, tmp_path: Path) -> None:
    empty = Run(tmp_path / "new", {**run.config, "arms": {}})
    with pytest.raises(ExperimentError, match="no arm has ended for any seed yet"):
        write_report(empty, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    empty.track("full", 0).folder.mkdir(parents=True)
    empty.track("full", 0).append(line(1, 3, 0.8765, last=True))
    text = Page(write_report(empty, tmp_path / "out")).text
    assert "only the full-data reference was trained" in text
    assert "All labels: 0.8765" in text
    with pytest.raises(ExperimentError, match="there is no run"):
        CliRunner().invoke(app, ["report", str(tmp_path / "nowhere")], catch_exceptions=False)
