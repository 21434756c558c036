"""The command line answers, and what a user can mend ends with its sentence and not with a traceback."""

import os
import subprocess
import sys

import pytest

from svgd_label.acquisition import ALIASES, STRATEGIES

from .conftest import NEEDS_SERVER, ROOT


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "250"},
    )


def test_help_lists_the_commands() -> None:
    listed = run("--help").stdout
    for command in ("serve", "strategies", "sample-data", "pretrain", "labels", "bench"):
        assert command in listed


def test_strategies_are_listed_with_their_sources() -> None:
    listed = run("strategies").stdout
    for strategy in STRATEGIES.values():
        assert strategy.name in listed
        assert strategy.source in listed
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in listed.splitlines() if line.startswith("│")]
    assert [row[:3] for row in rows] == [
        [name, ", ".join(alias for alias, of in ALIASES.items() if of == name), f"{rule.repeat:.0%}"]
        for name, rule in STRATEGIES.items()
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("pretrain", "liver", "--data", "."), "there is no task 'liver'"),
        (("pretrain", "sample", "--data", "/nowhere"), "there is no /nowhere/splits.json"),
        pytest.param(
            ("serve", "--studies", "/nowhere", "--port", "18765"),
            "/nowhere: there is no such folder",
            marks=NEEDS_SERVER,
        ),
        (("serve", "--conf", "lease"), "write KEY=VALUE"),
        pytest.param(("serve", "--conf", "leese=3", "--port", "18765"), "leese", marks=NEEDS_SERVER),
        (("labels", "list", "--studies", "/nowhere"), "no server has kept its state there"),
        (("bench", "nope"), "there is no benchmark 'nope'"),
    ],
)
def test_a_mistake_ends_with_one_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    ended = run(*arguments)
    assert ended.returncode == 2
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stderr.startswith("Error: ")
