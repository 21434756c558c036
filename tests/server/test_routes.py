"""MONAI Label's own endpoints answer from threads, and under the same addresses."""

import inspect
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Body, FastAPI, File, Form, UploadFile
from fastapi.testclient import TestClient
from monailabel.endpoints import datastore, info, train

from svgd_label.server import guards, routes
from svgd_label.server.body_limit import LIMIT


def test_no_endpoint_that_blocks_is_left_to_the_event_loop() -> None:
    threaded = {(route.path, *sorted(route.methods)): route.endpoint for route in routes._in_threads().routes}
    stock = [route for module in (datastore, info, train) for route in module.router.routes]
    assert {(route.path, *sorted(route.methods)) for route in stock} <= threaded.keys()
    assert not any(inspect.iscoroutinefunction(endpoint) for endpoint in threaded.values())


def test_parameters_and_answers_are_those_of_the_stock_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    def status(all: bool = False, check_if_running: bool = False) -> dict[str, bool]:
        return {"all": all, "running": check_if_running}

    monkeypatch.setattr(train, "status", status)
    # The one that MONAI Label would make here has no studies folder.
    monkeypatch.setattr(guards, "app_instance", lambda: SimpleNamespace(_infers={}, _scoring_methods={}))
    app = FastAPI()
    app.include_router(routes._in_threads())
    client = TestClient(app)
    assert client.get("/train/", params={"check_if_running": "true"}).json() == {"all": False, "running": True}
    assert client.get("/train/", params={"all": "perhaps"}).status_code == 422


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """All routes, as a server installs them once its app runs, and two that need no study."""
    echo = APIRouter()

    @echo.post("/svgd/echo")
    def body(body: Annotated[Any, Body()] = None) -> Any:
        return body

    @echo.put("/datastore/echo")
    def upload(file: Annotated[UploadFile, File()], params: Annotated[str, Form()] = "") -> list[int]:
        return [len(file.file.read()), len(params)]

    app = FastAPI()
    with TestClient(app) as client:
        routes.install(app, echo)
        yield client


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/svgd/echo"), ("POST", "/activelearning/svgd"), ("POST", "/svgd/flag?image=a"),
        ("POST", "/train/svgd"), ("POST", "/scoring/entropy_mi"), ("POST", "/batch/infer/svgd"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
def test_a_body_of_more_than_a_megabyte_is_not_parsed(client: TestClient, method: str, path: str, kind: str) -> None:
    long = json.dumps({"client_id": "x" * LIMIT}).encode()
    pieces = (long[begin : begin + 5000] for begin in range(0, len(long), 5000))  # their sum is not announced
    for body in (long, pieces):
        answer = client.request(method, path, content=body, headers={"Content-Type": kind})
        assert answer.status_code == 413
        assert f"longer than {LIMIT} bytes" in answer.json()["detail"]


def test_a_body_of_less_passes(client: TestClient) -> None:
    fits = {"x": "x" * (LIMIT - 20)}
    assert client.post("/svgd/echo", json=fits).json() == fits


def test_files_may_be_of_any_length_and_fields_beside_them_may_not(client: TestClient) -> None:
    file = ("a.nii", bytes(5 * LIMIT))
    answer = client.put("/datastore/echo", files={"file": file, "params": (None, "{}")})
    assert answer.json() == [5 * LIMIT, 2]
    answer = client.put("/datastore/echo", files={"file": file, "params": (None, "x" * (LIMIT + 1))})
    assert answer.status_code == 400
    assert "1024KB" in answer.json()["detail"]
    assert client.put("/datastore/echo", data={"params": "x" * LIMIT}).status_code == 413
