"""Where the index or all state was lost, the labels are those that were sent to the DICOM server."""

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom import Dataset
from tests.dicom.store import Open, drawn, instances, label_map, later, load, save, state

from svgd_label.server.dicom.orthanc import Orthanc
from svgd_label.server.dicom.web import Series, ServerError

pytestmark = pytest.mark.slow


def test_our_own_segs_are_known_again_after_the_index_was_lost(
    orthanc: Orthanc, open_store: Open, tmp_path: Path
) -> None:
    uid = load(orthanc, tmp_path)
    store = open_store()
    store.mirror.synchronise()
    save(store, uid, label_map(store, uid), tmp_path)
    store.outbox.send()
    store.close()
    for file in (tmp_path / "state").glob("state.sqlite*"):
        file.unlink()
    again = open_store()
    again.remove_label(uid, "final")
    again.mirror.synchronise()
    assert again.get_labeled_images() == [], "or a deleted label would come back"


def test_where_all_state_was_lost_the_labels_are_those_that_were_sent(
    orthanc: Orthanc, open_store: Open, tmp_path: Path
) -> None:
    uid = load(orthanc, tmp_path)
    store = open_store()
    store.mirror.synchronise()
    for value in (1, 2):
        save(store, uid, label_map(store, uid, value), tmp_path)
        store.outbox.send()
    store.close()
    shutil.rmtree(tmp_path / "state")
    again = open_store()
    again.mirror.synchronise()
    again.outbox.send()
    assert again.get_labeled_images() == [uid]
    np.testing.assert_array_equal(
        np.asarray(nibabel.load(again.get_label_uri(uid, "final")).dataobj), label_map(again, uid, 2)
    )
    assert len(instances(orthanc)) == 2, "nothing is sent back"


def test_where_all_state_was_lost_a_newer_label_whose_download_broke_off_is_not_lost(
    orthanc: Orthanc, open_store: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = load(orthanc, tmp_path)
    store = open_store()
    store.mirror.synchronise()
    for value in (1, 2, 3):
        save(store, uid, label_map(store, uid, value), tmp_path)
        store.outbox.send()
    newest = state(store, uid)["SOPInstanceUID"]
    store.close()
    shutil.rmtree(tmp_path / "state")
    again = open_store()
    fetch = again.server.instance

    def break_off(series: Series, instance: str) -> Dataset:
        if instance == newest:
            raise ServerError("broke off", is_outage=False)
        return fetch(series, instance)

    with monkeypatch.context() as patched:
        patched.setattr(again.server, "instance", break_off)
        again.mirror.synchronise()
    assert drawn(again, uid) == 2, "meanwhile"
    later(again)
    assert drawn(again, uid) == 3
