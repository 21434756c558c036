"""The page of equations leads to the code, and the code back to the page."""

import ast
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "method.md"
ROW = re.compile(r"^\| (.+?)(?: \([pd]\))? \|.*\| \[`(.+?)`\]\((.+?)\) \|$", re.MULTILINE)
ROWS = ROW.findall(PAGE.read_text(encoding="utf-8"))


def test_every_row_of_the_table_has_a_link() -> None:
    table = PAGE.read_text(encoding="utf-8").split("\n\n")[2].splitlines()[2:]
    assert len(ROWS) == len(table) > 15


@pytest.mark.parametrize(("what", "name", "file"), ROWS, ids=[what for what, *_ in ROWS])
def test_an_equations_docstring_names_its_row(what: str, name: str, file: str) -> None:
    source = (PAGE.parent / file).read_text(encoding="utf-8")
    last = name.split("(")[0].split(".")[-1]
    wanted = {last, "score"} if last == Path(file).stem else {last}  # a strategy's file holds its score
    docstrings = [
        ast.get_docstring(node) or ""
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in wanted
    ]
    assert any("docs/method.md" in text and f'"{what}"' in text for text in docstrings)
