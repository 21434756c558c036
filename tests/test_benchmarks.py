"""What the benchmarks write: one table and one figure of all measurements, and nothing from a quick run."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from benchmarks import _report, common
from benchmarks.common import Measurement, paired, peaks_gib

FAST = Measurement("fast", 0.5, 1.0, 1.0, 2.0, "s")
SLOW = Measurement("slow", 3.0, 1.5, 3.0, 1.0, "s", {"images": 4.0})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    module = ModuleType("benchmarks.invented")
    module.run = lambda quick: [FAST, SLOW]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    return tmp_path


def test_a_full_run_writes_every_measurement_and_a_quick_one_nothing(measured: Path) -> None:
    assert common.run("invented", quick=True) == [FAST, SLOW]
    assert list(measured.iterdir()) == []
    common.run("invented", quick=False)
    assert {file.name for file in measured.iterdir()} == {"fast.json", "slow.json"}


def test_table_and_figure_are_of_all_files_of_the_folder(measured: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    common.run("invented", quick=False)
    project = tmp_path / "project.md"
    project.write_text("before\n<!-- benchmarks -->\nold\n<!-- end -->\nafter\n", encoding="utf-8")
    _report.write(measured, project)
    page = (measured / "README.md").read_text(encoding="utf-8")
    assert "| fast | 1 | 2 | s | 0.500 | ≤ 1 | yes |\n| slow | 3 | 1 | s | 3.000 | ≤ 1.5 | no |\n" in page
    first, block, last = re.split("<!-- benchmarks -->\n|<!-- end -->\n", project.read_text(encoding="utf-8"))
    assert (first, last) == ("before\n", "after\n")
    assert block in page and "old" not in block
    assert (measured / "all.png").read_bytes().startswith(b"\x89PNG")


def test_the_projects_readme_shows_the_figures_that_were_measured() -> None:
    block = _report.BLOCK.search((common.ROOT / "README.md").read_text(encoding="utf-8"))
    assert block is not None
    files = sorted(common.RESULTS.glob("*.json"))
    assert [row.split(" | ")[0] for row in block[0].splitlines()[2:]] == [f"| {file.stem}" for file in files]
    assert block[0] in (common.RESULTS / "README.md").read_text(encoding="utf-8")


def test_both_sides_run_in_turn_as_often_as_asked_after_one_warm_up() -> None:
    order: list[str] = []
    ratio, ours, theirs = paired(lambda: order.append("a"), lambda: order.append("b"), pairs=3)
    assert "".join(order) == "abababab"
    assert ratio > 0 and ours > 0 and theirs > 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_peak_memory_is_the_fresh_processs_own() -> None:
    held = bytearray(300 << 20)
    held[::4096] = bytes(len(held[::4096]))
    nothing, much = peaks_gib(["pass", "x = bytearray(150 << 20); x[::4096] = bytes(len(x[::4096])); del x"])
    assert nothing < 0.1 < much < 0.3
