"""MONAI Label's own endpoints answer from threads, and under the same addresses."""

import inspect
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from monailabel.endpoints import datastore, info, train

from svgd_label.server import guards, routes


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
