"""What the README and the committed tables say of an experiment is what the files of its run say."""

from pathlib import Path

import pytest
from tests.conftest import ROOT

from svgd_label.experiments.report.findings import Findings
from svgd_label.experiments.report.page import table
from svgd_label.experiments.run import Run


@pytest.mark.parametrize("name", ["hippocampus-cpu", "sarcoma-ct"])
def test_the_committed_table_is_that_of_the_run(name: str) -> None:
    run = ROOT / "results" / name
    said = table(Findings(Run.open(run), Path("/nowhere")))
    assert (run / "report" / "table.md").read_text(encoding="utf-8") == said


def test_the_readme_shows_the_committed_table() -> None:
    said = (ROOT / "results" / "hippocampus-cpu" / "report" / "table.md").read_text(encoding="utf-8")
    assert said in (ROOT / "README.md").read_text(encoding="utf-8")


def test_without_a_reference_no_share_of_it_is_called_not_reached() -> None:
    said = table(Findings(Run.open(ROOT / "results" / "hippocampus-cpu-dev"), Path("/nowhere")))
    assert "not known" in said
    assert "not reached" not in said
