"""Imports go one way, and the core runs without MONAI Label."""

import ast
import subprocess
import sys

from .conftest import ROOT

PACKAGE = ROOT / "lib" / "svgd_label"
METHOD = ("svgd", "likelihood", "uncertainty", "similarity", "acquisition")
FORBIDDEN: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(METHOD, ("monai", "ignite", "monailabel", "nibabel", "sqlite3")),
    "pool": ("torch", "monai", "ignite", "monailabel", "nibabel"),
}
KNOWS: dict[str, tuple[str, ...]] = {
    "svgd": (),
    "likelihood": (),
    "uncertainty": (),
    "similarity": (),
    "acquisition": ("errors",),
    "pool": ("errors",),
    "images": ("errors",),
    "bands": (),
    "bottleneck": ("svgd",),
    "unlike": (),
    "labels": ("bands", "errors", "images"),
    "tasks": ("errors", "images", "labels", "likelihood"),
    "inference": ("bands", "bottleneck", "images", "svgd", "tasks", "uncertainty"),
    "scoring": ("bottleneck", "images", "inference", "pool", "similarity", "svgd", "tasks", "uncertainty"),
    "iteration": ("device", "svgd", "tasks"),
    "training": ("errors", "images", "inference", "iteration", "likelihood", "svgd", "tasks"),
}


def imports(room: str) -> set[str]:
    files = [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").is_file() else list((PACKAGE / room).rglob("*.py"))
    assert files, room
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: relative import"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                found |= set(names) if node.module == "svgd_label" else {str(node.module)}
    return found


def rooms(room: str) -> set[str]:
    return {name.split(".")[1] for name in imports(room) if name.startswith("svgd_label.")}


def test_every_room_knows_only_what_lies_below_it() -> None:
    for room, known in KNOWS.items():
        assert rooms(room) <= {room, *known}, room
    for room, forbidden in FORBIDDEN.items():
        assert not {name.split(".")[0] for name in imports(room)} & set(forbidden), room


def test_only_the_server_knows_monai_label_and_experiments_do_not_know_the_server() -> None:
    for path in PACKAGE.iterdir():
        room = path.stem
        if room in ("server", "__pycache__", "__init__", "py") or (path.is_file() and path.suffix != ".py"):
            continue
        assert not any(name.startswith("monailabel") for name in imports(room)), room
    assert "server" not in rooms("experiments")
    assert "experiments" not in rooms("server")


def test_the_core_is_imported_without_monai_label() -> None:
    modules = [
        ".".join(path.relative_to(ROOT / "lib").with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        if "server" not in path.parts and path.name != "__init__.py"
    ]
    code = f"import sys; sys.modules['monailabel'] = None\nfor m in {modules!r}: __import__(m)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)
