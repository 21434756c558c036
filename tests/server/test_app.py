"""The app over a real store and committee, as requests and saves meet it, without a server's processes."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from monailabel.endpoints import infer as stock_infer
from monailabel.interfaces.app import MONAILabelApp
from monailabel.utils.async_tasks.utils import background_tasks
from tests.conftest import blob, save_nifti

from svgd_label.checkpoint import UnreadableError, new_committee, save
from svgd_label.pool import Database, Pool
from svgd_label.server import guards, routes
from svgd_label.server.app import SVGDLabel
from svgd_label.server.committees import Committees
from svgd_label.server.datastore import SafeDatastore
from svgd_label.server.infer import SVGDInfer
from svgd_label.tasks import Task

SHAPE = (12, 12, 12)


class App(SVGDLabel):
    """What requests need of the app; MONAI Label's own constructor would look for a whole installation."""

    def __init__(self, studies: Path, task: Task) -> None:
        state = studies / ".svgd"
        self.task = task
        self.pool = Pool(Database(state, task=task.name), validation="none", max_frequency=3)
        self.committees = Committees(self.pool, task, state / "committees")
        self._datastore = SafeDatastore(studies, state=state, pool=self.pool, task=task, auto_reload=False)
        self._infers, self._infers_threadpool = {"svgd": SVGDInfer(self.committees)}, None
        self._asked, self._not_before = None, 0.0

    def info(self) -> dict[str, Any]:
        """Asked for by MONAI Label's endpoint, and not used."""
        return {}

    def publish(self, version: int, task: Task) -> None:
        file = self.committees.file(version)
        save(file, new_committee(task, seed=version), task, version=version)
        self.pool.models.publish(version, file, {})


@pytest.fixture
def app(tmp_path: Path, tiny: Task) -> Iterator[App]:
    for number, image in enumerate("ab"):
        save_nifti(tmp_path / "studies" / f"{image}.nii.gz", blob(SHAPE, number)[0])
    app = App(tmp_path / "studies", tiny)
    yield app
    app.pool.database.close()


@pytest.fixture
def client(app: App, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    for module in (guards, routes, stock_infer):
        monkeypatch.setattr(module, "app_instance", lambda: app)
    server = FastAPI()
    with TestClient(server) as client:
        routes.install(server)
        yield client


def test_what_is_proposed_never_takes_the_place_of_a_label(
    app: App, client: TestClient, tmp_path: Path, tiny: Task
) -> None:
    app.publish(1, tiny)
    label = save_nifti(tmp_path / "l.nii.gz", np.ones(SHAPE, np.uint8))
    app._datastore.save_label("a", str(label), "final", {"client_id": "anna"})
    for params, status in (
        ({"save_label": True, "label_tag": "final"}, 400),
        ({"save_label": True, "label_tag": "original"}, 200),
        ({"save_label": True}, 200),
    ):
        data = {"params": json.dumps(params)}
        answer = client.post("/infer/svgd", params={"image": "a", "output": "json"}, data=data)
        assert answer.status_code == status
    versions = app._datastore.labels.versions("a")
    assert [version.client for version in versions if version.tag == "final"] == ["anna"]
    assert app._datastore.get_labels_by_image_id("a") == {"final": "a", "original": "a"}
    answer = client.post("/batch/infer/svgd", json={"label_tag": "final"})
    assert answer.status_code == 400
    assert "is no label of an annotator" in answer.json()["detail"]


@pytest.mark.parametrize("tag", ["final", "original"])
def test_bands_are_never_stored_as_a_label(app: App, tag: str) -> None:
    with pytest.raises(HTTPException, match="is no label") as refused:
        app.infer({"model": "svgd_uncertainty", "image": "a", "save_label": True, "label_tag": tag})
    assert refused.value.status_code == 400
    assert app._datastore.get_labels_by_image_id("a") == {}


def test_an_id_is_the_studys_image_whatever_lies_in_the_working_directory(
    app: App, client: TestClient, tmp_path: Path, tiny: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.publish(1, tiny)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a").write_text("another patient's, or anything")
    monkeypatch.chdir(elsewhere)
    answer = client.post("/infer/svgd", params={"image": "a", "output": "json"})
    assert answer.status_code == 200
    assert app.pool.database.connection.execute("SELECT inferred_version FROM images WHERE image = 'a'").fetchone()[0]
    stored = app.infer({"model": "svgd", "image": "a", "save_label": True, "label_tag": "original"})  # as a batch does
    assert stored["label"] == "a"
    assert app._datastore.get_labels_by_image_id("a") == {"original": "a"}


def test_what_cannot_be_stored_leaves_no_file(
    app: App, tmp_path: Path, tiny: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    app.publish(1, tiny)
    with pytest.raises(HTTPException) as refused:
        app.infer({"model": "svgd", "image": "a", "save_label": True, "label_tag": "a/b"})
    assert refused.value.status_code == 404
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_committee_that_cannot_be_read_at_present_is_said_to_be_so(app: App, client: TestClient, tiny: Task) -> None:
    app.publish(1, tiny)
    away = app.committees.folder.rename(app.committees.folder.with_name("away"))
    answer = client.post("/infer/svgd", params={"image": "a", "output": "json"})
    assert answer.status_code == 503
    assert "cannot be read at present" in answer.json()["detail"]
    away.rename(app.committees.folder)
    assert client.post("/infer/svgd", params={"image": "a", "output": "json"}).status_code == 200


def test_a_scoring_that_can_achieve_nothing_is_not_started(
    app: App, tiny: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    monkeypatch.setattr(MONAILabelApp, "async_scoring", lambda _, method: started.append(method))
    monkeypatch.setitem(background_tasks, "scoring", [])
    app.publish(1, tiny.model_copy(update={"particles": 3}))
    for _ in range(5):
        app._score_what_is_left()
    assert started == [], "the committee is of another shape"
    app.publish(2, tiny)
    away = app.committees.folder.rename(app.committees.folder.with_name("away"))
    with pytest.raises(UnreadableError):
        app._score_what_is_left()
    away.rename(app.committees.folder)
    for _ in range(5):
        app._score_what_is_left()
    assert started == ["entropy_mi"], "the run that was started has scored none of them"
    save_nifti(app._datastore.studies.folder / "b.nii.gz", blob(SHAPE, 7)[0])
    app._datastore.refresh()
    app._score_what_is_left()
    assert len(started) == 2, "another file"


def test_beside_a_training_that_scores_no_second_scoring_is_started(
    app: App, tiny: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    monkeypatch.setattr(MONAILabelApp, "async_scoring", lambda _, method: started.append(method))
    monkeypatch.setitem(background_tasks, "scoring", [])
    monkeypatch.setattr("svgd_label.server.app.is_running", lambda method: method == "train")
    app.publish(1, tiny)  # and has picked nothing yet
    app._score_what_is_left()
    assert started == []
    monkeypatch.setattr("svgd_label.server.app.is_running", lambda method: False)
    app._score_what_is_left()  # it was stopped before it had scored all
    assert started == ["entropy_mi"]


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        (None, "label.example", 200),
        ("https://label.example", "label.example", 200),
        ("https://label.example:8443", "label.example", 200),  # behind a proxy that leaves the port out
        ("https://label.example", "label.example:443", 200),
        ("http://[::1]:8000", "[::1]:8000", 200),
        ("http://127.0.0.1:3000", "127.0.0.1:8000", 403),
        ("https://viewer.example", "label.example", 200),
        ("https://evil.example", "label.example", 403),
        ("null", "label.example", 403),
        ("https://[", "label.example", 403),
    ],
)
def test_pages_of_other_origins_change_nothing(
    app: App, monkeypatch: pytest.MonkeyPatch, origin: str | None, host: str, status: int
) -> None:
    monkeypatch.setattr(routes.settings, "MONAI_LABEL_CORS_ORIGINS", ["https://viewer.example/"])
    monkeypatch.setattr(routes, "app_instance", lambda: app)
    app.on_flag = lambda image: None  # type: ignore[method-assign]
    server = FastAPI()
    headers: dict[str, Any] = {"Host": host} | ({} if origin is None else {"Origin": origin})
    with TestClient(server) as client:
        routes.install(server)
        answer = client.post("/svgd/flag?image=a", headers=headers, json={"reason": "motion"})
    assert answer.status_code == status
    assert app.pool.overview.image_state("a")["flagged"] == ("motion" if status == 200 else None)


def test_a_process_beside_the_server_knows_that_it_is_one() -> None:
    """By what it has imported, as the app is made before MONAI Label says in which process it is."""
    code = (
        "import sys, monailabel.interfaces.utils.app, svgd_label.server.app; assert 'monailabel.app' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
