"""MONAI Label's own endpoints answer from threads, and under the same addresses."""

import gzip
import hashlib
import inspect
import io
import json
import os
import resource
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import nibabel
import numpy as np
import pytest
from fastapi import APIRouter, Body, FastAPI, File, Form, UploadFile
from fastapi.testclient import TestClient
from monailabel.endpoints import datastore, info, train
from monailabel.endpoints.user.auth import User
from tests.dicom.series import OBLIQUE, make_series

from svgd_label.images import load_volume
from svgd_label.pool import Database, Pool
from svgd_label.server import guards, routes, slicer
from svgd_label.server.body_limit import LIMIT
from svgd_label.server.datastore import SafeDatastore
from svgd_label.server.strategy import SVGDStrategy
from svgd_label.server.temporary import keep_temporary_files_in
from svgd_label.tasks import Task


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


class Study:
    """The little of an app that requests about images and labels need, over a real store."""

    def __init__(self, folder: Path) -> None:
        self._infers = {"svgd": None}
        task = Task(name="hips", labels=("anterior", "posterior"), window=(16, 16, 16))
        self.pool = Pool(Database(folder / ".svgd", task="hips"), validation="fifth", max_frequency=10)
        self.store = SafeDatastore(folder, state=folder / ".svgd", pool=self.pool, task=task, auto_reload=False)
        self._strategies = {"svgd": SVGDStrategy(self.pool, "entropy_mi")}

    def datastore(self) -> SafeDatastore:
        return self.store

    def on_save_label(self, image: str, label: str) -> None:
        pass

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any] | None:
        return self._strategies["svgd"](request, self.store)


def volume(*values: int) -> bytes:
    return nibabel.Nifti1Image(np.resize(np.array(values, np.uint8), (4, 5, 6)), np.eye(4)).to_bytes()


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "a.nii").write_bytes(volume(5))
    study = Study(tmp_path / "studies")
    for module in (guards, routes, datastore):
        monkeypatch.setattr(module, "app_instance", lambda: study)
    return study


def save(client: TestClient, params: Any, **query: str) -> Any:
    files = {"params": (None, json.dumps(params)), "label": ("l.nii", volume(0, 1))}
    return client.put("/datastore/label", params={"image": "a", **query}, files=files)


INFO = [{"name": "anterior", "idx": 1}, {"name": "cyst", "idx": 3}]


def test_the_answer_to_a_label_says_what_was_left_out(client: TestClient, study: Study) -> None:
    for tag, version in (("final", 1), ("second", 2), ("original", None)):
        answer = save(client, {"label_info": INFO, "client_id": "anna"}, tag=tag)
        assert answer.json() == {
            "image": "a", "label": "a", "ignored": ["cyst"], "missing": ["posterior"], "version": version,
        }  # fmt: skip
    assert save(client, {"label_info": [{"name": "cyst"}]}).status_code == 400
    assert save(client, {"label_info": INFO}, image="b").status_code == 404
    assert save(client, {"label_info": INFO}, tag="../x").status_code == 404
    assert save(client, [1]).status_code == 400


def test_a_label_is_stored_under_the_name_of_who_sent_it(
    client: TestClient, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def saved_by(params: Any) -> str | None:
        assert save(client, {"label_info": INFO, **params}).status_code == 200
        return study.store.labels.versions("a")[-1].client

    assert saved_by({"client_id": "anna"}) == "anna"
    assert saved_by({"client_id": "anna\nINFO: forged"}) == "annaINFO: forged"
    assert saved_by({}) == "testclient"  # the address
    client.cookies.set(routes.CLIENT_COOKIE, "browser")
    assert saved_by({}) == "browser"
    client.cookies.clear()
    monkeypatch.setattr(routes.settings, "MONAI_LABEL_AUTH_ENABLE", True)  # after which the login is asked for again
    client.app.dependency_overrides[routes._annotator.dependency] = lambda: User(username="root")
    assert saved_by({"client_id": "anna"}) == "root"
    client.app.dependency_overrides.clear()


def test_slicers_that_nobody_has_named_are_told_by_their_addresses(client: TestClient, study: Study) -> None:
    assert save(client, {"label_info": INFO, "client_id": "user-xyz"}).status_code == 200
    assert study.store.labels.versions("a")[-1].client == "testclient"


def test_a_copy_that_slicer_has_kept_is_out_of_date_once_the_file_has_changed(client: TestClient, study: Study) -> None:
    def checksum() -> object:
        sample = client.post("/activelearning/svgd", json={}).json()
        downloaded = client.get("/datastore/image", params={"image": sample["id"]}).content
        assert sample["checksum"] == f"SHA256:{hashlib.sha256(downloaded).hexdigest()}"
        assert (sample["name"], Path(sample["path"]).name) == ("a.nii", "a.nii")
        return sample["checksum"]

    before = checksum()
    assert checksum() == before
    (study.store.studies.folder / "a.nii").write_bytes(volume(6, 7))
    assert checksum() != before


def test_a_folder_that_got_a_link_out_is_proposed_no_more(client: TestClient, study: Study, tmp_path: Path) -> None:
    (study.store.studies.folder / "a.nii").unlink()
    make_series(study.store.studies.folder / "a", OBLIQUE)
    study.store.studies.reconcile()
    (study.store.studies.folder / "a" / "1.dcm").symlink_to(tmp_path / "elsewhere")
    answer = client.post("/activelearning/svgd", json={})
    assert (answer.status_code, answer.json()["detail"]) == (
        409,
        "The image a has just gone from the studies: ask for the next one.",
    )
    assert "a" not in study.store.list_images()


def test_a_crowd_that_downloads_series_leaves_threads_to_those_who_save(client: TestClient, study: Study) -> None:
    (study.store.studies.folder / "a.nii").unlink()
    make_series(study.store.studies.folder / "a", OBLIQUE)
    study.store.studies.reconcile()
    with ThreadPoolExecutor(slicer.PLACES) as pool, slicer._one_at_a_time:
        waiting = [pool.submit(slicer.as_nifti, study.store.studies.folder / "a") for _ in range(slicer.PLACES)]
        while slicer._places._value:
            time.sleep(0.01)
        answer = client.get("/datastore/image", params={"image": "a"})
        assert answer.status_code == 503
        assert "try again in a moment" in answer.json()["detail"]
    assert len({future.result() for future in waiting}) == 1
    assert client.get("/datastore/image", params={"image": "a"}).status_code == 200


def test_a_folder_of_dicom_is_one_file_to_a_viewer_without_dicom(client: TestClient, study: Study) -> None:
    (study.store.studies.folder / "a.nii").unlink()
    folder = study.store.studies.folder / "a"
    make_series(folder, OBLIQUE)
    study.store.studies.reconcile()
    sample = client.post("/activelearning/svgd", json={}).json()
    assert sample["path"] is None  # or a Slicer on this machine would open the folder
    assert sample["name"].startswith("a.")
    assert sample["name"].endswith(".nii.gz")
    answer = client.get("/datastore/image", params={"image": "a"})
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(answer.content))
    original = load_volume(folder)
    np.testing.assert_allclose(image.affine, original.affine.numpy(), atol=1e-4)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), original.numpy()[0])
    assert image.get_data_dtype() == np.int16
    next(folder.iterdir()).unlink()
    answer = client.get("/datastore/image", params={"image": "a"})
    assert answer.status_code == 422
    assert "even distances; is one missing?" in answer.json()["detail"]
    assert client.post("/activelearning/svgd", json={}).json()["name"] != sample["name"]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def test_an_upload_for_which_the_disk_has_no_room_is_a_sentence_and_leaves_nothing(
    client: TestClient, study: Study, temporary: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 2, (20, 20, 20)).astype(np.uint8)
    file = ("x.nii", nibabel.Nifti1Image(noise, np.eye(4)).to_bytes())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        answers = [
            client.put("/datastore/label", params={"image": "a"}, files={"label": file}),
            client.put("/datastore/image", params={"image": "x"}, files={"file": file}),
            client.post("/infer/svgd", files={"file": file}),
        ]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for answer in answers:
        assert answer.status_code == 507
        assert answer.json()["detail"].startswith("Nothing was stored")
    assert list(temporary.iterdir()) == []
    assert study.store.list_images() == ["a"]


def test_an_upload_longer_than_the_disk_has_room_is_not_begun(client: TestClient) -> None:
    length = {"Content-Length": str(shutil.disk_usage(tempfile.gettempdir()).free)}
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = client.put("/datastore/echo", content=iter([b"--x"]), headers={**kind, **length})
    assert answer.status_code == 507
    assert answer.json()["detail"].startswith("Nothing was stored: ")
    assert client.put("/datastore/echo", content=b"--x--", headers=kind).status_code != 507


def test_temporary_files_lie_in_the_state_folder_and_those_of_a_killed_server_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    keep_temporary_files_in(tmp_path / "state" / "temporary")
    assert tempfile.gettempdir() == str(tmp_path), "as its operator says"
    monkeypatch.delenv("TMPDIR")
    old, new = (tmp_path / "state" / "temporary" / name for name in ("old", "new"))
    for left in (old, new):
        left.mkdir(parents=True)
        (left / "half.nii").write_text("half an upload")
    os.utime(old, (0, 0))
    keep_temporary_files_in(tmp_path / "state" / "temporary")
    with tempfile.NamedTemporaryFile() as file:
        assert Path(file.name).parent == tmp_path / "state" / "temporary"
    assert (old.exists(), new.exists()) == (False, True)


def test_an_archive_goes_once_it_is_sent(client: TestClient, study: Study) -> None:
    assert client.get("/datastore/dataset").status_code == 404
    save(client, {"label_info": INFO})
    answer = client.get("/datastore/dataset", params={"limit_cases": 1})
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert set(archive.namelist()) == {"image/a.nii", "label/a.nii.gz", "metadata.json"}
    assert list((study.store.studies.folder / ".svgd" / "archives").iterdir()) == []


@pytest.mark.parametrize("path", ["/datastore/", "/datastore/image"])
def test_an_image_without_an_id_has_the_name_of_its_file(client: TestClient, study: Study, path: str) -> None:
    def put(name: str, content: bytes, **query: str) -> Any:
        return client.put(path, params=query, files={"file": (name, content)})

    assert put("case.1.nii", volume(1)).json() == {"image": "case.1"}
    assert put("case.2.nii", volume(2)).json() == {"image": "case.2"}
    assert put("case.2.nii", volume(2)).json() == {"image": "case.2"}, "the same once more"
    assert put("case.2.nii", volume(3)).status_code == 409
    assert put("x.y.nii", volume(3), image="named").json() == {"image": "named"}
    assert put("x.nii", volume(3), image="../named").status_code == 404
    assert put("x.txt", volume(3)).status_code == 400
    assert study.store.list_images() == ["a", "case.1", "case.2", "named"]


def test_only_an_images_own_path_is_taken_for_it(client: TestClient, study: Study) -> None:
    folder = study.store.studies.folder
    save(client, {"label_info": INFO})
    (folder / "notes.txt").write_text("private")
    (folder / "series").mkdir()
    (folder / "series" / "1.dcm").write_bytes(bytes(128) + b"DICM")
    study.store.refresh()
    for image in ("a", folder / "a.nii", folder / "labels" / ".." / "a.nii", folder / "series"):
        assert routes._is_in_study(str(image)), image
    for other in (
        folder, "labels/final/a.nii.gz", ".svgd/state.sqlite", ".svgd/versions/a/1.nii.gz", "notes.txt", "a.nii.gz",
        "labels", "/etc/passwd", "labels/a.nii",
    ):  # fmt: skip
        answer = client.post("/infer/svgd", params={"image": str(folder / other)})
        assert answer.status_code == 404, other
