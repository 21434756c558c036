"""The real server on a real DICOM server: from the search for series to SEGs that survive kills on both sides."""

import io
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import requests
from numpy.typing import NDArray
from tests.dicom.conftest import PASSWORD, USER, free_port
from tests.dicom.series import PATIENT, PATIENT_ID, SAGITTAL, Geometry, labels_on_grid, make_series
from tests.e2e.server import Server, itk

from svgd_label.images import geometry
from svgd_label.server.dicom.orthanc import Orthanc
from svgd_label.server.dicom.segmentation import read_segmentation
from svgd_label.server.start import StartError

pytestmark = pytest.mark.slow

GRID = Geometry((0, 1, 0), (0, 0, -1), (1.0, 0, 0), (1.0, 1.0), shape=(40, 48, 36))
LABEL_INFO = [{"name": "posterior", "idx": 2}, {"name": "anterior", "idx": 3}]


class Site:
    """An Orthanc with two series, and the server on it."""

    def __init__(self, folder: Path, orthanc: Orthanc) -> None:
        self.orthanc = orthanc
        self.server = Server(
            folder,
            {"task": "hippocampus", "state": str(folder / "state")},
            source=orthanc.url + "/",
            environment={
                "MONAI_LABEL_DICOMWEB_USERNAME": USER,
                "MONAI_LABEL_DICOMWEB_PASSWORD": PASSWORD,
                "MONAI_LABEL_DICOMWEB_SEARCH_FILTER": json.dumps({"Modality": "MR"}),
                "MONAI_LABEL_DICOMWEB_CACHE_EXPIRY": "2",
            },
        )
        self.images = [make_series(folder / f"series {n}", GRID, seed=n) for n in range(2)]
        self.files = folder

    def labels(self, image: str, seed: int) -> NDArray[np.uint8]:
        """A label map in the client's values, another for each seed."""
        shape, affine = geometry(self.server.image_info(image)["path"])
        return np.roll(labels_on_grid(shape, affine, GRID), seed, axis=1)

    def save(self, image: str, labels: NDArray[np.uint8]) -> requests.Response:
        """As a page with OHIF in it saves: the bare voxels, names beside them.

        The series' slices are numbered against the direction in which OHIF puts them.
        """
        return self.server.request(
            "PUT",
            "/datastore/label",
            params={"image": image},
            files={
                "params": (None, json.dumps({"label_info": LABEL_INFO, "client_id": "ohif"})),
                "label": ("label.bin", np.flip(labels, axis=2).tobytes(order="F")),
            },
        )

    def state(self, image: str) -> dict[str, Any]:
        objects = self.server.request("GET", "/datastore/", params={"output": "all"}).json()["objects"]
        found: dict[str, Any] = objects[image]["labels"]["final"]["info"]["dicom_seg"]
        return found

    def sent(self, image: str) -> NDArray[np.uint8]:
        """Waits until the label is on the DICOM server, and reads it there, in the task's values."""
        self.server.wait_for(lambda: self.state(image)["state"] == "sent", "the SEG on the DICOM server", seconds=120)
        found = self.orthanc.ask("POST", "/tools/lookup", data=self.state(image)["SOPInstanceUID"]).json()
        content = self.orthanc.ask("GET", f"{found[0]['Path']}/file").content
        grid = geometry(self.server.image_info(image)["path"])
        return read_segmentation(pydicom.dcmread(io.BytesIO(content)), *grid)[0]


def stored(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What the client's values stand for: 3 is anterior, which is the task's 1."""
    return np.where(labels == 3, 1, labels).astype(np.uint8)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The server was started first, while nobody answered it."""
    folder = tmp_path_factory.mktemp("dicom")
    try:
        orthanc = Orthanc(folder / "orthanc", free_port(), (USER, PASSWORD))
    except StartError as error:
        pytest.skip(str(error))
    site = Site(folder, orthanc)
    try:
        site.server.start()
        site.server.wait_for(lambda: "cannot be reached" in site.server.log(), "a sentence on the outage")
        assert site.server.next_sample("early") == {}
        orthanc.start()
        for number in range(2):
            orthanc.load(folder / f"series {number}")
        site.server.wait_for(lambda: len(site.server.slicer().datastore()["objects"]) == 2, "both series")
        yield site
    finally:
        site.server.kill()
        orthanc.stop()


def test_the_next_sample_names_its_study_and_is_segmented(site: Site) -> None:
    sample = site.server.next_sample("ohif")
    assert sample["id"] in site.images
    head = pydicom.dcmread(next((site.files / f"series {site.images.index(sample['id'])}").iterdir()))
    for name in ("Modality", "StudyDate", "PatientID", "StudyInstanceUID", "SeriesInstanceUID"):
        assert sample[name] == str(head[name].value)
    answer = site.server.ohif_infer(sample["id"])
    assert answer.ok, answer.text
    assert answer.content.startswith(b"NRRD")


def test_a_label_as_ohif_saves_it_arrives_with_its_voxels(site: Site) -> None:
    labels = site.labels(site.images[0], 0)
    assert {*np.unique(labels)} == {0, 2, 3}
    assert site.save(site.images[0], labels).ok
    np.testing.assert_array_equal(site.sent(site.images[0]), stored(labels))


def test_a_label_as_slicer_saves_it_arrives_with_its_voxels(site: Site, tmp_path: Path) -> None:
    image = site.images[1]
    series = itk.ImageSeriesReader()
    folder = site.server.image_info(image)["path"]
    series.SetFileNames(series.GetGDCMSeriesFileNames(folder))
    volume = series.Execute()
    values = np.zeros(volume.GetSize()[::-1], np.uint8)
    values[5:20, 10:30, 8:25] = 2
    label = itk.GetImageFromArray(values)
    label.CopyInformation(volume)
    itk.WriteImage(label, str(tmp_path / "label.nrrd"))
    answer = site.server.slicer().save_label(
        image, str(tmp_path / "label.nrrd"), params={"label_info": [{"name": "anterior", "idx": 1}, *LABEL_INFO[:1]]}
    )
    assert answer["label"] == image
    found = site.sent(image)
    assert (found == 2).sum() == 15 * 20 * 17
    # ITK read the files by itself: the same places in the patient must be labelled.
    affine = geometry(folder)[1]
    lps = np.array([volume.TransformIndexToPhysicalPoint(p) for p in [(8, 10, 5), (24, 29, 19)]])
    corners = np.rint((np.c_[lps * [-1, -1, 1], [1, 1]] @ np.linalg.inv(affine).T)[:, :3]).astype(int)
    low, high = corners.min(axis=0), corners.max(axis=0) + 1
    assert (found[low[0] : high[0], low[1] : high[1], low[2] : high[2]] == 2).all()


def test_the_proxy_keeps_queries_and_reaches_nothing_else(site: Site) -> None:
    def ask(path: str, **arguments: Any) -> requests.Response:
        request = requests.Request("GET", site.server.address, **arguments).prepare()
        request.url = f"{site.server.address}{path}"  # as it stands, without tidying of dots
        return requests.Session().send(request, timeout=60)

    assert len(ask("/proxy/dicom/qido/series?Modality=MR").json()) == 2
    assert ask("/proxy/dicom/qido/series?Modality=CT").json() == []
    study = site.server.image_info(site.images[0])["StudyInstanceUID"]
    path = f"studies/{study}/series/{site.images[0]}"
    assert len(ask(f"/proxy/dicom/wado/{path}/metadata").json()) == GRID.shape[2]
    frames = ask(f"/proxy/dicom/wado/{path}", headers={"Accept": 'multipart/related; type="application/dicom"'})
    assert frames.headers["Content-Type"].startswith("multipart/related")
    assert frames.content.count(b"DICM") >= GRID.shape[2]
    for outside in ("../instances", "%2e%2e/instances", "qido/../../system", "system", "wado/studies/..%2f..%2fsystem"):
        assert ask(f"/proxy/dicom/{outside}").status_code == 404, outside
    assert requests.delete(f"{site.server.address}/proxy/dicom/{path}", timeout=60).status_code in (404, 405)
    assert requests.post(f"{site.server.address}/proxy/dicom/wado/instances", timeout=60).status_code == 404


def test_a_viewer_can_store_through_the_proxy(site: Site) -> None:
    uid = make_series(site.files / "stored", SAGITTAL, seed=9)
    boundary, parts = "b0undary", []
    for file in (site.files / "stored").iterdir():
        parts += [f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode(), file.read_bytes(), b"\r\n"]
    answer = site.server.request(
        "POST",
        "/proxy/dicom/wado/studies",
        data=b"".join([*parts, f"--{boundary}--\r\n".encode()]),
        headers={"Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}'},
    )
    assert answer.ok, answer.text
    site.server.wait_for(lambda: uid in site.server.slicer().datastore()["objects"], "the new series")


def test_a_label_saved_while_the_dicom_server_is_dead_arrives_when_it_is_back(site: Site) -> None:
    image, labels = site.images[0], site.labels(site.images[0], 3)
    site.orthanc.stop(kill=True)
    assert site.save(image, labels).ok
    assert site.state(image)["state"] == "waiting"
    assert site.server.request("GET", "/proxy/dicom/qido/series").status_code == 502
    assert site.server.next_sample("other") != {}, "nothing has stopped"
    site.orthanc.start()
    np.testing.assert_array_equal(site.sent(image), stored(labels))


def test_a_label_saved_before_a_kill_arrives_after_the_restart(site: Site) -> None:
    image, labels = site.images[1], site.labels(site.images[1], 5)
    site.orthanc.stop(kill=True)
    assert site.save(image, labels).ok
    site.server.kill()
    site.orthanc.start()
    site.server.start()
    np.testing.assert_array_equal(site.sent(image), stored(labels))


def test_a_server_that_is_empty_after_a_restart_takes_nothing_away(site: Site) -> None:
    before = site.server.slicer().datastore()
    said = site.server.log().count("lists no image series")
    site.orthanc.stop(kill=True)
    shutil.rmtree(site.orthanc.folder / "storage")
    site.orthanc.start()
    site.server.wait_for(lambda: site.server.log().count("lists no image series") == said + 1, "a sentence on it")
    time.sleep(5)  # two more looks
    assert site.server.log().count("lists no image series") == said + 1
    after = site.server.slicer().datastore()
    assert after["objects"].keys() == before["objects"].keys()
    for image in site.images:
        assert Path(site.server.image_info(image)["path"]).is_dir()
        assert "final" in after["objects"][image]["labels"]


def test_no_password_and_no_patient_stand_in_the_log(site: Site) -> None:
    log = site.server.log()
    for secret in (PASSWORD, PATIENT, PATIENT_ID):
        assert secret not in log
