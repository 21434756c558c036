"""SEGs that other programs stored become labels."""

import errno
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import generate_uid
from tests.dicom.series import AXIAL, make_series
from tests.dicom.store import drawn, instances, label_map, later, load, save, state, takeover

from svgd_label.images import ImageError, geometry
from svgd_label.labels import LabelError
from svgd_label.server.dicom.datastore import DicomDatastore
from svgd_label.server.dicom.orthanc import Orthanc
from svgd_label.server.dicom.segmentation import MAKER, Origin, make_segmentation
from svgd_label.server.dicom.takeover import _Candidate, _dated, _readings
from svgd_label.server.dicom.web import Series, ServerError

pytestmark = pytest.mark.slow


def store_theirs(
    orthanc: Orthanc,
    store: DicomDatastore,
    image: str,
    labels: NDArray[np.uint8],
    names: tuple[str, ...],
    written: str = "20990101",
    maker: str = "Other",
    series: str | None = None,
    algorithm: str = "MANUAL",
) -> str:
    """A SEG as another program writes it, or this one for another task."""
    folder = Path(store.get_image_uri(image))
    theirs = make_segmentation(
        folder,
        labels,
        geometry(folder)[1],
        names,
        series_uid=series or generate_uid(),
        instance_uid=generate_uid(),
        origin=Origin("other", None, None, False),
    )
    for segment in theirs.SegmentSequence:
        segment.SegmentAlgorithmType = algorithm
        segment.SegmentAlgorithmName = "Finder"
    theirs.Manufacturer = theirs.ManufacturerModelName = maker
    theirs.ContentDate = written
    store.server.store(theirs)
    return str(theirs.SeriesInstanceUID)


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
    fetch, fetched = store.server.instance, []

    def slowly(series: Series, instance: str) -> Dataset:
        fetched.append(instance)
        save(store, uid, label_map(store, uid, 2), tmp_path)
        return fetch(series, instance)

    monkeypatch.setattr(store.server, "instance", slowly)
    store.mirror.synchronise()
    assert len(fetched) == 1
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


def test_a_newer_seg_that_is_refused_does_not_cost_an_older_good_one(
    orthanc: Orthanc, store: DicomDatastore, tmp_path: Path
) -> None:
    uid = load(orthanc, tmp_path)
    store.mirror.synchronise()
    store_theirs(orthanc, store, uid, label_map(store, uid, 1), ("first",), written="20300101")
    store_theirs(orthanc, store, uid, label_map(store, uid, 1), ("second",), written="20310101")
    store_theirs(orthanc, store, uid, label_map(store, uid, 1), ("spleen",), written="20320101")
    store.mirror.synchronise()
    assert drawn(store, uid) == 2
    store.mirror.synchronise()
    assert len(store.labels.versions(uid)) == 1


def full_disk() -> LabelError:
    error = LabelError("label.nii.gz: the label cannot be stored")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    return error


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("svgd_label.server.dicom.takeover.write_label", full_disk()),
        ("svgd_label.server.dicom.takeover.geometry", ImageError("memory is short", passing=True)),
        ("svgd_label.server.datastore.convert_label", ImageError("memory is short", passing=True)),
    ],
)
def test_what_passes_refuses_no_seg_for_ever(
    where: str,
    error: Exception,
    orthanc: Orthanc,
    store: DicomDatastore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    uid = load(orthanc, tmp_path)
    store.mirror.synchronise()
    store_theirs(orthanc, store, uid, label_map(store, uid, 1), ("first",))

    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(where, fail)
        store.mirror.synchronise()
        later(store)
    assert store.get_labeled_images() == []
    assert f"could not be read ({error}" in caplog.text
    later(store)
    assert drawn(store, uid) == 1
    assert list((tmp_path / "state" / "incoming").iterdir()) == []


def test_a_further_seg_in_a_series_that_is_known_is_read_too(
    orthanc: Orthanc, store: DicomDatastore, tmp_path: Path
) -> None:
    study = generate_uid()
    uid, other = (make_series(tmp_path / f"files {i}", AXIAL, seed=i, study=study) for i in range(2))
    for i in range(2):
        orthanc.load(tmp_path / f"files {i}")
    store.mirror.synchronise()
    series = store_theirs(orthanc, store, uid, label_map(store, uid, 1), ("first",), written="20300101")
    store_theirs(orthanc, store, other, label_map(store, other, 1), ("third tumour",), series=series)
    store.mirror._filter = {"Modality": "MR", "SeriesInstanceUID": uid}
    store.mirror._unlisted = {other}  # for the second time now
    store.mirror.synchronise()
    assert (store.get_labeled_images(), drawn(store, uid)) == ([uid], 1)
    store_theirs(orthanc, store, uid, label_map(store, uid, 1), ("second",), written="20310101", series=series)
    store.mirror.synchronise()
    assert drawn(store, uid) == 2
    store.mirror._filter = {"Modality": "MR"}
    store.mirror.synchronise()
    store.mirror.synchronise()
    assert (drawn(store, uid), drawn(store, other)) == (2, 3)
    assert [version.image for version in store.labels.versions()] == sorted([uid, uid, other])


def test_what_an_earlier_version_noted_of_a_series_still_counts(
    orthanc: Orthanc, store: DicomDatastore, tmp_path: Path
) -> None:
    uid = load(orthanc, tmp_path)
    store.mirror.synchronise()
    series = store_theirs(orthanc, store, uid, label_map(store, uid, 1), ("first",))
    with store._database.transaction() as connection:
        connection.execute(
            "INSERT INTO segmentations (image, fingerprint, state, series) VALUES (?, ?, 'older', ?)",
            (uid, series, series),
        )
    store.mirror.synchronise()
    assert store.get_labeled_images() == []
    for structure, value in (("second", 2), ("third tumour", 3)):
        written = f"2099010{value}"
        store_theirs(orthanc, store, uid, label_map(store, uid, 1), (structure,), written=written, series=series)
        store.mirror.synchronise()
        assert drawn(store, uid) == value


def test_an_automatic_seg_replaces_no_label_and_serves_where_there_is_none(
    orthanc: Orthanc, store: DicomDatastore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved, empty = load(orthanc, tmp_path), load(orthanc, tmp_path, seed=1)
    store.mirror.synchronise()
    with store._database.transaction() as connection:
        connection.execute("UPDATE images SET inferred_version = 3")
    save(store, saved, label_map(store, saved, 2), tmp_path)
    for uid in (saved, empty):
        store_theirs(orthanc, store, uid, label_map(store, uid, 1), ("first",), algorithm="AUTOMATIC")
    store.mirror.synchronise()
    store.mirror.synchronise()
    assert (drawn(store, saved), drawn(store, empty)) == (2, 1)
    assert caplog.text.count(f"{saved} on the DICOM server is not taken over: no person drew it") == 1
    assert [version.model_version for version in store.labels.versions(empty)] == [None], "no committee of ours"
    # What a person drew is better, although it is older, and whoever drew it.
    store_theirs(orthanc, store, empty, label_map(store, empty, 1), ("third tumour",), written="20200101")
    store.mirror.synchronise()
    assert drawn(store, empty) == 3


def test_segs_of_series_that_are_not_in_the_study_are_not_fetched(
    orthanc: Orthanc, store: DicomDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid, other = load(orthanc, tmp_path), load(orthanc, tmp_path, seed=1)
    store.mirror.synchronise()
    series = [
        store_theirs(orthanc, store, image, label_map(store, image, 1), ("first", "second")) for image in (uid, other)
    ]
    store.mirror._filter = {"Modality": "MR", "SeriesInstanceUID": uid}
    store.mirror._unlisted = {other}  # for the second time now
    fetched = []
    for name in ("instance", "instances"):
        fetch = getattr(store.server, name)
        monkeypatch.setattr(store.server, name, lambda of, *uid, fetch=fetch: fetched.append(of.uid) or fetch(of, *uid))
    store.mirror.synchronise()
    store.mirror.synchronise()
    assert fetched == series[:1]


def test_a_server_that_goes_away_between_two_segs_is_not_asked_for_the_rest(
    orthanc: Orthanc, store: DicomDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = load(orthanc, tmp_path)
    store.mirror.synchronise()
    for _ in range(4):
        store_theirs(orthanc, store, uid, label_map(store, uid, 1), ("first",))
    ask, asked = store.server.instance_uids, []

    def while_it_stops(series: Series) -> list[str]:
        asked.append(series)
        orthanc.stop(kill=True)
        return ask(series)

    monkeypatch.setattr(store.server, "instance_uids", while_it_stops)
    with pytest.raises(ServerError, match="cannot be reached"):
        takeover(store).look()
    assert len(asked) == 2
    orthanc.start()
    monkeypatch.undo()
    later(store)
    assert drawn(store, uid) == 1


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
class TestWritten:
    """When a SEG was written, in a place whose clock shows another time than UTC."""

    @pytest.fixture(autouse=True)
    def _place(self, monkeypatch: pytest.MonkeyPatch, zone: str) -> Iterator[None]:
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        yield
        monkeypatch.undo()
        time.tzset()

    @staticmethod
    def head(ago: float, *, is_local: bool) -> Dataset:
        moment = time.localtime(time.time() - ago) if is_local else time.gmtime(time.time() - ago)
        theirs = Dataset()
        theirs.ContentDate, theirs.ContentTime = time.strftime("%Y%m%d", moment), time.strftime("%H%M%S", moment)
        return theirs

    @staticmethod
    def ago(*heads: Dataset) -> list[float]:
        found = [_Candidate(Series("1", "1.1", "SEG", None), "1.1.1", _readings(head), False) for head in heads]
        return [time.time() - candidate.written for candidate in _dated(found)]

    @pytest.mark.parametrize("is_local", [True, False])
    def test_never_in_the_future(self, is_local: bool) -> None:
        """One of ten minutes ago must not replace a label of one minute ago, whichever time it was written in."""
        assert self.ago(self.head(600, is_local=is_local))[0] >= 599

    @pytest.mark.parametrize("is_local", [True, False])
    def test_the_later_of_two_stays_the_later(self, is_local: bool) -> None:
        """Although that of an hour and a half ago could be of half an hour ago, in Berlin."""
        first, second = self.ago(self.head(5400, is_local=is_local), self.head(3240, is_local=is_local))
        assert first - second == pytest.approx(2160, abs=2)

    def test_where_it_is_sure_it_is_believed(self) -> None:
        ours, theirs = self.head(5400, is_local=True), self.head(5400, is_local=True)
        ours.ManufacturerModelName = MAKER
        theirs.TimezoneOffsetFromUTC = time.strftime("%z", time.localtime(time.time() - 5400))
        assert self.ago(ours, theirs) == pytest.approx([5400, 5400], abs=2)

    def test_where_nothing_is_said_it_has_just_come(self) -> None:
        assert _dated([_Candidate(Series("1", "1.1", "SEG", None), "1.1.1", _readings(Dataset()), False)])[
            0
        ].written == float("inf")


def test_a_server_that_lists_segs_and_gives_out_none_is_away(
    orthanc: Orthanc, store: DicomDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of many would cost a minute of waiting, while no new series comes."""
    uid = load(orthanc, tmp_path)
    store.mirror.synchronise()
    for _ in range(4):
        store_theirs(orthanc, store, uid, label_map(store, uid, 1), ("first",))
    asked = []

    def hang(series: Series, instance: str, names: object) -> Dataset:
        asked.append(instance)
        raise ServerError("no answer", is_outage=True)

    monkeypatch.setattr(store.server, "head", hang)
    with pytest.raises(ServerError, match="no answer"):
        takeover(store).look()
    assert len(asked) == 2
