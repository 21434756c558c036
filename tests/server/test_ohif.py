"""OHIF's configuration stays MONAI Label's, with the annotator's script behind it; a browser is a client of its own."""

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import monailabel
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from svgd_label.server import ohif, routes

STOCK = Path(monailabel.__file__).parent / "endpoints" / "static" / "ohif" / "app-config.js"


def served() -> str:
    app = FastAPI()
    routes.install(app, ohif.router)
    client = TestClient(app)
    answer = client.get("/ohif/app-config.js")
    assert answer.headers["content-type"].startswith("text/javascript")
    assert answer.headers["cache-control"] == "no-cache"
    return answer.text


def test_the_stock_configuration_comes_first_and_unchanged() -> None:
    assert served().startswith(STOCK.read_text(encoding="utf-8"))


def test_the_script_names_no_other_server() -> None:
    script = served().removeprefix(STOCK.read_text(encoding="utf-8"))
    assert "'Submit label'" in script
    assert "://" not in script.replace("`${location.origin}/`", "")


@pytest.mark.skipif(shutil.which("node") is None, reason="node, which reads JavaScript, is not installed")
def test_the_script_can_be_read_as_javascript(tmp_path: Path) -> None:
    file = tmp_path / "app-config.js"
    file.write_text(served(), encoding="utf-8")
    check = subprocess.run(["node", "--check", str(file)], capture_output=True, text=True, timeout=60)
    assert check.returncode == 0, check.stderr


@pytest.mark.parametrize(
    ("params", "cookies", "expected"),
    [
        ({"client_id": "slicer"}, {"svgd_client": "browser-1"}, "slicer"),
        ({}, {"svgd_client": "browser-1"}, "browser-1"),
        ({}, {}, "10.0.0.7"),
    ],
)
def test_a_browser_is_told_by_its_cookie_before_its_address(
    params: dict[str, str], cookies: dict[str, str], expected: str
) -> None:
    request = SimpleNamespace(client=SimpleNamespace(host="10.0.0.7"), cookies=cookies)
    assert routes._client(request, params, SimpleNamespace(username="")) == expected  # type: ignore[arg-type]
