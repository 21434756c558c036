"""What the README says of an experiment is what the files of its run say."""

from pathlib import Path

from tests.conftest import ROOT

from svgd_label.experiments.report.findings import Findings
from svgd_label.experiments.report.page import table
from svgd_label.experiments.run import Run


def test_the_readme_shows_the_table_of_the_committed_run() -> None:
    run = ROOT / "results" / "hippocampus-cpu"
    said = table(Findings(Run.open(run), Path("/nowhere")))
    assert (run / "report" / "table.md").read_text(encoding="utf-8") == said
    assert said in (ROOT / "README.md").read_text(encoding="utf-8")
