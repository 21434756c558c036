"""Series are mirrored, labels come back as SEG, and a server that is away, empty or wrong costs nothing."""

import errno
import fcntl
import gzip
import logging
import threading
import time
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from fastapi import HTTPException
from numpy.typing import NDArray
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless
from tests.dicom.conftest import PASSWORD, USER
from tests.dicom.series import AXIAL, PATIENT, PATIENT_ID, make_series
from tests.dicom.store import Open, instances, label_map, load, save, state

from svgd_label.images import geometry
from svgd_label.server.dicom.address import Address
from svgd_label.server.dicom.datastore import DicomDatastore
from svgd_label.server.dicom.mirror import INFO
from svgd_label.server.dicom.orthanc import Orthanc
from svgd_label.server.dicom.segmentation import read_segmentation
from svgd_label.server.dicom.web import DicomServer

pytestmark = pytest.mark.slow


def voxels(store: DicomDatastore, image: str, segmentation: pydicom.Dataset) -> NDArray[np.uint8]:
    return read_segmentation(segmentation, *geometry(store.get_image_uri(image)))[0]


def delete(orthanc: Orthanc, uid: str) -> None:
    found = orthanc.ask("POST", "/tools/lookup", data=uid).json()
    assert orthanc.ask("DELETE", found[0]["Path"]).ok


# Series


def test_a_series_becomes_an_image_with_what_a_viewer_needs_to_find_it(
    orthanc: Orthanc, store: DicomDatastore, tmp_path: Path
) -> None:
    uid = load(orthanc, tmp_path)
    store.mirror.synchronise()
    assert store.list_images() == [uid]
    info = store.get_image_info(uid)
    assert (info["Modality"], info["StudyDate"], info["PatientID"]) == ("MR", "20240229", PATIENT_ID)
    sent = pydicom.dcmread(next((tmp_path / "files 0").iterdir()))
    assert (info["StudyInstanceUID"], info["SeriesInstanceUID"]) == (sent.StudyInstanceUID, uid)
    originals = {pydicom.dcmread(file).SOPInstanceUID: file for file in (tmp_path / "files 0").iterdir()}
    fetched = sorted(Path(info["path"]).iterdir())
    assert len(fetched) == len(originals) == AXIAL.shape[2]
    for file in fetched:
        assert pydicom.dcmread(file) == pydicom.dcmread(originals[file.stem])


def test_what_is_there_is_not_fetched_again_and_what_has_grown_is_when_it_rests(
    orthanc: Orthanc, store: DicomDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = make_series(tmp_path / "files", AXIAL)
    late = sorted((tmp_path / "files").iterdir())[3]
    late.rename(tmp_path / "late.dcm")
    orthanc.load(tmp_path / "files")
    store.mirror.synchronise()
    folder = Path(store.get_image_uri(uid))
    before = folder.stat().st_ino
    store.mirror.synchronise()
    assert folder.stat().st_ino == before
    orthanc.ask("POST", "/instances", data=(tmp_path / "late.dcm").read_bytes())
    store.mirror.synchronise()
    assert len(list(folder.iterdir())) == AXIAL.shape[2] - 1, "it may still be growing"
    with monkeypatch.context() as patched:  # the disk is full once both are on it
        patched.setattr(store.mirror, "_describe", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        store.mirror.synchronise()
    store.mirror._patience.keep([])
    store.mirror.synchronise()
    assert len(list(folder.iterdir())) == AXIAL.shape[2]
    assert store.get_image_info(uid)["NumberOfSeriesRelatedInstances"] == AXIAL.shape[2]
    assert [path.name for path in (tmp_path / "state" / "incoming").iterdir()] == []


def test_a_series_that_arrives_while_the_server_restarts_is_fetched_when_it_rests(
    orthanc: Orthanc, open_store: Open, tmp_path: Path
) -> None:
    here = load(orthanc, tmp_path)
    store = open_store()
    store.mirror.synchronise()
    assert store.list_images() == [here], "at the very first start nobody waits"
    store.close()
    coming = make_series(tmp_path / "files", AXIAL)
    late = sorted((tmp_path / "files").iterdir())[3]
    late.rename(tmp_path / "late.dcm")
    orthanc.load(tmp_path / "files")
    again = open_store()
    again.mirror.synchronise()
    assert again.list_images() == [here], "it may still be growing"
    orthanc.ask("POST", "/instances", data=(tmp_path / "late.dcm").read_bytes())
    again.mirror.synchronise()
    assert again.list_images() == [here]
    again.mirror.synchronise()
    assert again.list_images() == sorted([here, coming])
    assert geometry(again.get_image_uri(coming))[0] == AXIAL.shape


def test_a_series_that_others_are_listed_without_leaves_and_keeps_its_label(
    orthanc: Orthanc, store: DicomDatastore, tmp_path: Path
) -> None:
    first, second = load(orthanc, tmp_path), load(orthanc, tmp_path, seed=1)
    store.mirror.synchronise()
    save(store, first, label_map(store, first), tmp_path)
    file = Path(store.get_label_uri(first, "final"))
    content = file.read_bytes()
    delete(orthanc, first)
    store.mirror.synchronise()
    assert store.list_images() == sorted([first, second]), "one answer may lack a series"
    store.mirror.synchronise()
    assert store.list_images() == [second]
    assert file.read_bytes() == content
    late = tmp_path / "late.nii.gz"
    late.write_bytes(b"drawn while the series went")
    with pytest.raises(
        HTTPException, match=r"is no longer in the study, so it cannot be labelled\. The upload is kept"
    ):
        store.save_label(first, str(late), "final", {})
    assert [kept.read_bytes() for kept in (tmp_path / "state" / "refused").iterdir()] == [late.read_bytes()]
    orthanc.load(tmp_path / "files 0")
    store.mirror.synchronise()
    store.mirror.synchronise()
    assert store.list_images() == sorted([first, second])
    assert store.get_labeled_images() == [first]
    assert Path(store.get_label_uri(first, "final")).read_bytes() == content


def test_an_empty_and_a_silent_server_cost_nothing_and_are_told_of_once(
    orthanc: Orthanc, store: DicomDatastore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uid = load(orthanc, tmp_path)
    store.mirror.synchronise()
    delete(orthanc, uid)
    with caplog.at_level(logging.INFO):
        store.mirror.synchronise()
        store.mirror.synchronise()
    assert store.list_images() == [uid]
    assert [r.message for r in caplog.records if "lists no image series" in r.message] == [caplog.records[0].message]
    orthanc.stop(kill=True)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        store.mirror.synchronise()
        store.mirror.synchronise()
    assert len(caplog.records) == 1
    assert "cannot be reached" in caplog.text
    assert store.list_images() == [uid]
    assert geometry(store.get_image_uri(uid))[0] == AXIAL.shape
    orthanc.start()
    orthanc.load(tmp_path / "files 0")
    other = load(orthanc, tmp_path, seed=1)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        store.mirror.synchronise()
        store.mirror.synchronise()
    assert "answers again" in caplog.text
    assert store.list_images() == sorted([uid, other])


def spoil(folder: Path) -> None:
    """Makes the series one of JPEG 2000 that nothing can decode: this server answers HTTP 500 for it."""
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.PixelData = encapsulate([b"no picture"])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
        dataset.save_as(file)


def test_a_series_that_the_server_does_not_give_out_keeps_no_other_away(
    orthanc: Orthanc, store: DicomDatastore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [make_series(tmp_path / f"bad {seed}", AXIAL, seed=seed) for seed in range(3)]
    for seed in range(3):
        spoil(tmp_path / f"bad {seed}")
        orthanc.load(tmp_path / f"bad {seed}")
    good = sorted(load(orthanc, tmp_path, seed=seed) for seed in (3, 4))
    with caplog.at_level(logging.INFO):
        for _ in range(3):  # in whichever order they are listed
            store.mirror.synchronise()
    assert store.list_images() == good
    for uid in bad:
        assert len([r for r in caplog.records if uid in r.message and "HTTP 500" in r.message]) == 1
    assert "answers again" not in caplog.text


def test_only_one_of_two_servers_with_one_state_follows_the_dicom_server(
    orthanc: Orthanc, open_store: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uid = load(orthanc, tmp_path)
    second = open_store()
    with (tmp_path / "state" / "mirror.lock").open("a") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        second.mirror.start()
        end = time.monotonic() + 30
        while "this one waits" not in caplog.text and time.monotonic() < end:
            time.sleep(0.05)
        assert "this one waits" in caplog.text
        assert second.list_images() == []
    end = time.monotonic() + 60
    while second.list_images() != [uid] and time.monotonic() < end:
        time.sleep(0.1)
    assert second.list_images() == [uid], "it goes on where the first ends"


def test_a_lost_index_is_made_again_without_fetching(orthanc: Orthanc, open_store: Open, tmp_path: Path) -> None:
    uid, damaged = load(orthanc, tmp_path), load(orthanc, tmp_path, seed=1)
    store = open_store()
    store.mirror.synchronise()
    min(Path(store.get_image_uri(damaged)).iterdir()).write_bytes(b"no DICOM any more")
    folder, info = Path(store.get_image_uri(uid)), store.get_image_info(uid)
    before = folder.stat().st_ino
    for file in (tmp_path / "state").glob("state.sqlite*"):
        file.unlink()
    again = open_store()
    again.mirror.synchronise()
    assert folder.stat().st_ino == before
    assert again.get_image_info(uid)["StudyInstanceUID"] == info["StudyInstanceUID"]


@pytest.mark.parametrize("name", [*INFO, "NumberOfSeriesRelatedInstances"])
def test_by_what_a_series_is_found_no_client_changes(
    name: str, orthanc: Orthanc, store: DicomDatastore, tmp_path: Path
) -> None:
    uid = load(orthanc, tmp_path)
    store.mirror.synchronise()
    before = store.get_image_info(uid)
    with pytest.raises(
        HTTPException, match=f"^400: {name} comes from the DICOM server and cannot be changed here"
    ) as no:
        store.update_image_info(uid, {name: "many", "colour": "red"})
    assert no.value.status_code == 400
    assert store.get_image_info(uid) == before
    store.update_image_info(uid, {"colour": "red"})
    assert store.get_image_info(uid) == {**before, "colour": "red"}


@pytest.mark.parametrize("count", ["many", [3], 1e300])
def test_a_stored_count_that_is_none_is_made_again(
    count: object, orthanc: Orthanc, store: DicomDatastore, tmp_path: Path
) -> None:
    uid = load(orthanc, tmp_path)
    store.mirror.synchronise()
    folder, info = Path(store.get_image_uri(uid)), store.get_image_info(uid)
    before = folder.stat().st_ino
    # As anybody could have written it with an earlier version.
    store.studies.update_info(uid, {"NumberOfSeriesRelatedInstances": count, "StudyInstanceUID": "1.2.3"})
    store.mirror.synchronise()
    assert store.get_image_info(uid) == info
    assert folder.stat().st_ino == before


def test_images_are_stored_and_removed_on_the_dicom_server_only(
    orthanc: Orthanc, store: DicomDatastore, tmp_path: Path
) -> None:
    uid = load(orthanc, tmp_path)
    store.mirror.synchronise()
    with pytest.raises(HTTPException, match="409"):
        store.remove_image(uid)
    with pytest.raises(HTTPException, match="409"):
        store.add_image("a", str(tmp_path / "a.nii.gz"), {})
    assert store.list_images() == [uid]


# Labels


def test_a_label_arrives_voxel_for_voxel_and_a_correction_replaces_it(
    orthanc: Orthanc, store: DicomDatastore, tmp_path: Path
) -> None:
    uid = load(orthanc, tmp_path, seed=1)
    store.mirror.synchronise()
    save(store, uid, label_map(store, uid, 3), tmp_path)
    assert state(store, uid)["state"] == "waiting"
    store.outbox.send()
    first = state(store, uid)
    assert first["state"] == "sent"
    np.testing.assert_array_equal(
        voxels(store, uid, instances(orthanc)[first["SOPInstanceUID"]]), label_map(store, uid, 3)
    )
    store.outbox.send()
    assert len(instances(orthanc)) == 1, "a label is sent once"
    save(store, uid, label_map(store, uid, 1), tmp_path)
    store.outbox.send()
    second = state(store, uid)
    found = instances(orthanc)
    assert found.keys() == {first["SOPInstanceUID"], second["SOPInstanceUID"]}
    newest = found[second["SOPInstanceUID"]]
    np.testing.assert_array_equal(voxels(store, uid, newest), label_map(store, uid, 1))
    assert "replaces earlier" in newest.ContentDescription
    rows = store._database.connection.execute("SELECT state, number FROM segmentations ORDER BY number")
    assert [tuple(row) for row in rows] == [("superseded", 1), ("sent", 2)]
    store.mirror.synchronise()
    assert store.list_images() == [uid], "a SEG is no image"


def test_an_empty_label_is_kept_and_counted_here_and_supersedes_what_was_sent(
    orthanc: Orthanc, store: DicomDatastore, tmp_path: Path
) -> None:
    uid = load(orthanc, tmp_path)
    store.mirror.synchronise()
    save(store, uid, label_map(store, uid), tmp_path)
    store.outbox.send()
    save(store, uid, label_map(store, uid, 0), tmp_path)
    store.outbox.send()
    assert state(store, uid)["state"] == "empty"
    assert "no SEG can hold" in state(store, uid)["why"]
    assert store.status()["completed"] == 1
    assert len(instances(orthanc)) == 1
    rows = store._database.connection.execute("SELECT state FROM segmentations ORDER BY number")
    assert [row["state"] for row in rows] == ["superseded", "empty"]


def test_while_the_server_is_away_labels_wait_and_the_latest_is_sent(
    orthanc: Orthanc, open_store: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store()
    kept, deleted = load(orthanc, tmp_path), load(orthanc, tmp_path, seed=1)
    store.mirror.synchronise()
    orthanc.stop(kill=True)
    save(store, kept, label_map(store, kept, 1), tmp_path)
    with caplog.at_level(logging.WARNING):
        store.outbox.send()
        store.outbox.retry()
        store.outbox.send()
    assert state(store, kept)["state"] == "waiting"
    assert "cannot be reached" in state(store, kept)["why"]
    assert state(store, kept)["attempts"] == 2
    assert len(caplog.records) == 1, "once an outage"
    save(store, kept, label_map(store, kept, 2), tmp_path)
    save(store, deleted, label_map(store, deleted, 1), tmp_path)
    store.remove_label(deleted, "final")
    store.close()
    again = open_store()
    again.outbox.send()
    orthanc.start()
    again.outbox.retry()
    again.outbox.send()
    found = instances(orthanc)
    assert list(found) == [state(again, kept)["SOPInstanceUID"]]
    np.testing.assert_array_equal(voxels(again, kept, next(iter(found.values()))), label_map(again, kept, 2))


def test_a_label_that_was_deleted_while_it_waited_is_forgotten(
    orthanc: Orthanc, store: DicomDatastore, tmp_path: Path
) -> None:
    uid = load(orthanc, tmp_path)
    store.mirror.synchronise()
    orthanc.stop(kill=True)
    save(store, uid, label_map(store, uid), tmp_path)
    store.outbox.send()
    assert store.outbox._patience.seconds() <= 2
    store.remove_label(uid, "final")
    store.outbox.send()
    assert store.outbox._patience.seconds() == float("inf"), "or the thread would look for it ten times a second"


def test_a_label_whose_answer_was_lost_is_not_stored_twice(
    orthanc: Orthanc, store: DicomDatastore, tmp_path: Path
) -> None:
    uid = load(orthanc, tmp_path)
    store.mirror.synchronise()
    save(store, uid, label_map(store, uid), tmp_path)
    store.outbox.send()
    with store._database.transaction() as connection:  # as a kill between storing and noting it leaves it
        connection.execute("UPDATE segmentations SET state = 'waiting'")
    store.outbox.send()
    assert state(store, uid)["state"] == "sent"
    assert list(instances(orthanc)) == [state(store, uid)["SOPInstanceUID"]]


def test_a_label_that_was_put_into_the_folder_is_sent_and_one_that_does_not_fit_says_why(
    orthanc: Orthanc, store: DicomDatastore, tmp_path: Path
) -> None:
    first, second = load(orthanc, tmp_path), load(orthanc, tmp_path, seed=1)
    store.mirror.synchronise()
    final = Path(store.studies.label_folder("final"))
    for image, affine in ((first, geometry(store.get_image_uri(first))[1]), (second, np.eye(4))):
        file = nibabel.Nifti1Image(label_map(store, image), affine)
        (final / f"{image}.nii.gz").write_bytes(gzip.compress(file.to_bytes()))
    store.refresh()
    store.outbox.send()
    assert state(store, first)["state"] == "sent"
    assert state(store, second)["state"] == "failed"
    assert "save it on the image's grid" in state(store, second)["why"]


# Secrets


@pytest.mark.parametrize("password", [PASSWORD, "wrong secret"])
def test_no_log_holds_a_password_or_a_patient(
    password: str, orthanc: Orthanc, open_store: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store()
    uid = load(orthanc, tmp_path)
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("dicomweb_client").setLevel(logging.WARNING)
        store.mirror._server = store.outbox._server = DicomServer(Address(orthanc.url, USER, password))
        store.mirror._filter = {"Modality": "MR", "PatientID": PATIENT_ID}
        store.mirror.synchronise()
        if password == PASSWORD:
            save(store, uid, label_map(store, uid), tmp_path)
            store.outbox.send()
            assert state(store, uid)["state"] == "sent"
        else:
            assert "HTTP 401" in caplog.text
    ours = "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.INFO)
    for secret in (password, PATIENT, PATIENT_ID):
        assert secret not in ours


def test_no_series_is_exchanged_while_a_label_is_saved(orthanc: Orthanc, store: DicomDatastore, tmp_path: Path) -> None:
    """Between the check that a label fits its image and its transaction, another image must not come."""
    uid = load(orthanc, tmp_path)
    mirror = threading.Thread(target=store.mirror.synchronise)
    with store.changing:
        mirror.start()
        mirror.join(timeout=3)
        assert mirror.is_alive()
        assert store.list_images() == []
    mirror.join()
    assert store.list_images() == [uid]
