"""SEGs that other programs stored become labels; our own are known again."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import generate_uid
from tests.dicom.store import Open, instances, label_map, load, save, state

from svgd_label.images import geometry
from svgd_label.server.dicom.datastore import DicomDatastore
from svgd_label.server.dicom.orthanc import Orthanc
from svgd_label.server.dicom.segmentation import MAKER, Origin, make_segmentation
from svgd_label.server.dicom.takeover import _written
from svgd_label.server.dicom.web import Series

pytestmark = pytest.mark.slow


def store_theirs(
    orthanc: Orthanc,
    store: DicomDatastore,
    image: str,
    labels: NDArray[np.uint8],
    names: tuple[str, ...],
    written: str = "20990101",
    maker: str = "Other",
) -> None:
    """A SEG as another program writes it, or this one for another task."""
    folder = Path(store.get_image_uri(image))
    theirs = make_segmentation(
        folder,
        labels,
        geometry(folder)[1],
        names,
        series_uid=generate_uid(),
        instance_uid=generate_uid(),
        origin=Origin("other", None, None, False),
    )
    theirs.Manufacturer = theirs.ManufacturerModelName = maker
    theirs.ContentDate = written
    store.server.store(theirs)


def test_a_seg_that_another_program_stored_becomes_the_label_by_its_names_and_is_not_sent_back(
    orthanc: Orthanc, store: DicomDatastore, tmp_path: Path
) -> None:
    uid = load(orthanc, tmp_path, seed=1)
    store.mirror.synchronise()
    store_theirs(orthanc, store, uid, label_map(store, uid, 1), ("Third Tumour", "second"))
    store.mirror.synchronise()
    np.testing.assert_array_equal(
        np.asarray(nibabel.load(store.get_label_uri(uid, "final")).dataobj), label_map(store, uid, 3)
    )
    assert store.labels.versions(uid)[-1].client == "DICOM server"
    store.outbox.send()
    assert state(store, uid)["state"] == "theirs"
    assert len(instances(orthanc)) == 1
    save(store, uid, label_map(store, uid, 2), tmp_path)
    store.outbox.send()
    store.mirror.synchronise()
    store.mirror.synchronise()
    assert len(instances(orthanc)) == 2
    assert [v.number for v in store.labels.versions(uid)] == [1, 2], "neither theirs nor ours is read again"


def test_a_label_that_is_saved_while_an_older_seg_comes_stays(
    orthanc: Orthanc, store: DicomDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = load(orthanc, tmp_path, seed=1)
    store.mirror.synchronise()
    store_theirs(orthanc, store, uid, label_map(store, uid, 1), ("first", "second"), written="20200101")
    fetch, fetched = store.server.instances, []

    def slowly(series: Series) -> Iterator[Dataset]:
        fetched.append(series)
        if len(fetched) == 2:  # first it is looked at, then taken
            save(store, uid, label_map(store, uid, 2), tmp_path)
        return fetch(series)

    monkeypatch.setattr(store.server, "instances", slowly)
    store.mirror.synchronise()
    assert len(fetched) == 2
    assert [v.number for v in store.labels.versions(uid)] == [1]
    assert np.asarray(nibabel.load(store.get_label_uri(uid, "final")).dataobj).max() == 2


def test_a_seg_that_cannot_be_read_keeps_no_other_away_and_is_told_of(
    orthanc: Orthanc, store: DicomDatastore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = [load(orthanc, tmp_path, seed=seed) for seed in (1, 2)]
    store.mirror.synchronise()
    folder = Path(store.get_image_uri(images[0]))
    spoilt = make_segmentation(
        folder, label_map(store, images[0], 1), geometry(folder)[1], ("first",),
        series_uid=generate_uid(), instance_uid=generate_uid(), origin=Origin("other", None, None, False),
    )  # fmt: skip
    spoilt.Manufacturer = spoilt.ManufacturerModelName = "Other"
    spoilt.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = None
    store.server.store(spoilt)
    aimless = make_segmentation(
        folder, label_map(store, images[0], 1), geometry(folder)[1], ("first",),
        series_uid=generate_uid(), instance_uid=generate_uid(), origin=Origin("other", None, None, False),
    )  # fmt: skip
    del aimless.ReferencedSeriesSequence
    store.server.store(aimless)
    store_theirs(orthanc, store, images[1], label_map(store, images[1], 1), ("first", "second"))
    store.mirror.synchronise()
    store.mirror.synchronise()
    assert store.get_labeled_images() == [images[1]]
    assert "is not taken over: it cannot be read (TypeError)" in caplog.text
    assert caplog.text.count(f"{aimless.SeriesInstanceUID} does not say which series it shows") == 1


def test_an_older_seg_changes_nothing_and_one_with_unknown_names_is_refused_once(
    orthanc: Orthanc, store: DicomDatastore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uid = load(orthanc, tmp_path)
    store.mirror.synchronise()
    save(store, uid, label_map(store, uid, 2), tmp_path)
    store_theirs(orthanc, store, uid, label_map(store, uid, 1), ("first",), written="20200101")
    store_theirs(orthanc, store, uid, label_map(store, uid, 1), ("spleen",))
    store.mirror.synchronise()
    store.mirror.synchronise()
    assert [v.number for v in store.labels.versions(uid)] == [1]
    assert caplog.text.count("'spleen', which the task does not know") == 1
    store.outbox.send()
    assert state(store, uid)["state"] == "sent"


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


def test_a_label_of_another_task_on_the_same_server_is_none_of_this_one(
    orthanc: Orthanc, store: DicomDatastore, tmp_path: Path
) -> None:
    uid = load(orthanc, tmp_path)
    store.mirror.synchronise()
    # Its only structure is one of this task's, which would take it for a label that lacks the others.
    store_theirs(orthanc, store, uid, label_map(store, uid, 1), ("first",), maker=MAKER)
    store.mirror.synchronise()
    assert store.get_labeled_images() == []


def test_of_several_segs_the_newest_counts_and_one_whose_series_comes_later_waits_for_it(
    orthanc: Orthanc, store: DicomDatastore, tmp_path: Path
) -> None:
    uid, other = load(orthanc, tmp_path), load(orthanc, tmp_path, seed=1)
    store.mirror.synchronise()
    for value, written in ((1, "20300101"), (2, "20320101"), (3, "20310101")):
        store_theirs(orthanc, store, uid, label_map(store, uid, value), ("first", "second", "third tumour"), written)
    store_theirs(orthanc, store, other, label_map(store, other, 1), ("second",))
    store.mirror._filter = {"Modality": "MR", "SeriesInstanceUID": uid}
    store.mirror._unlisted = {other}  # for the second time now
    store.mirror.synchronise()
    assert store.get_labeled_images() == [uid]
    np.testing.assert_array_equal(
        np.asarray(nibabel.load(store.get_label_uri(uid, "final")).dataobj), label_map(store, uid, 2)
    )
    assert len(store.labels.versions(uid)) == 1
    store.mirror._filter = {"Modality": "MR"}
    store.mirror.synchronise()
    store.mirror.synchronise()
    assert store.get_labeled_images() == sorted([uid, other])


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "UTC"])
@pytest.mark.parametrize("is_local", [True, False])
def test_a_seg_was_written_in_the_past(monkeypatch: pytest.MonkeyPatch, zone: str, is_local: bool) -> None:
    """One of ten minutes ago must not replace a label of one minute ago, whichever time it was written in."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        written = time.time() - 600
        moment = time.localtime(written) if is_local else time.gmtime(written)
        theirs = Dataset()
        theirs.ContentDate, theirs.ContentTime = time.strftime("%Y%m%d", moment), time.strftime("%H%M%S", moment)
        assert _written(theirs) <= time.time() - 599
    finally:
        monkeypatch.undo()
        time.tzset()
