"""The datastore behaves as MONAI Label's endpoints expect, and answers with sentences where something is wrong."""

import contextlib
import json
import os
import resource
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.server.store import INFO, SHAPE, refusal, stored, values, write

from svgd_label.errors import UserError
from svgd_label.labels import convert_label
from svgd_label.pool import Database, RankingRow
from svgd_label.server.datastore import SafeDatastore


def test_a_saved_label_is_the_label(store: SafeDatastore, upload: Path, folder: Path) -> None:
    assert store.get_unlabeled_images() == ["a", "b", "c"]
    assert store.save_label("a", str(upload), "final", dict(INFO)) == "a"
    assert store.get_label_uri("a", "final") == str(folder / "labels/final/a.nii.gz")
    assert np.array_equal(stored(store.get_label_uri("a", "final")), values())
    assert store.get_labeled_images() == ["a"]
    assert store.get_unlabeled_images() == ["b", "c"]
    assert store.get_labels_by_image_id("a") == {"final": "a"}
    assert store.get_label_by_image_id("a", "final") == "a"
    info = store.get_label_info("a", "final")
    assert (info["client_id"], info["name"], info["ignored"]) == ("anna", "a.nii.gz", [])
    assert store.status() == {"total": 3, "completed": 1, "label_tags": {"final": 1}}
    assert store.datalist() == [{"image": str(folder / "a.nii.gz"), "label": str(folder / "labels/final/a.nii.gz")}]
    assert store.datalist(full_path=False) == [{"image": "a.nii.gz", "label": "labels/final/a.nii.gz"}]
    label = store.get_label("a", "final")
    assert label is not None
    assert label.read() == (folder / "labels/final/a.nii.gz").read_bytes()
    assert store.labels.versions("a")[0].client == "anna"


def test_names_decide_not_values(store: SafeDatastore, tmp_path: Path) -> None:
    only_posterior = write(tmp_path / "p.nii.gz", (values() > 1).astype(np.uint8))
    info = {"label_info": [{"name": " Posterior ", "idx": 1}]}
    store.save_label("a", str(only_posterior), "final", info)
    assert np.array_equal(stored(store.get_label_uri("a", "final")), 2 * (values() > 1))


def test_a_pre_segmentation_of_our_own_needs_no_names(store: SafeDatastore, upload: Path) -> None:
    store.save_label("a", str(upload), "original", {"model": "svgd", "params": {"dice": np.float32(0.5)}})
    assert store.status()["label_tags"] == {"original": 1}
    assert store.get_labeled_images() == []
    assert store.labels.versions("a") == []


def test_a_label_that_does_not_fit_is_refused_and_kept(store: SafeDatastore, tmp_path: Path, upload: Path) -> None:
    store.save_label("a", str(upload), "final", dict(INFO))
    small = write(tmp_path / "small.nii.gz", np.ones((2, 2, 2), np.uint8))
    sentence = refusal(400, store.save_label, "a", str(small), "final", dict(INFO))
    assert "2 x 2 x 2" in sentence
    (kept,) = (store.pool.database.folder / "refused").iterdir()
    assert f". The upload is kept on the server as refused/{kept.name} in" in sentence
    assert kept.read_bytes() == small.read_bytes()
    assert np.array_equal(stored(store.get_label_uri("a", "final")), values())


def test_a_refusal_that_asks_ends_as_a_question(store: SafeDatastore, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.nii.gz"
    garbage.write_bytes(b"x" * 100)
    sentence = refusal(400, store.save_label, "a", str(garbage), "final", dict(INFO))
    assert "is it complete? The upload is kept" in sentence


def test_a_correction_keeps_both_versions_and_what_it_corrects(
    store: SafeDatastore, upload: Path, tmp_path: Path
) -> None:
    store.pool.inferred("a", 3)
    store.save_label("a", str(upload), "final", dict(INFO))
    store.save_label("a", str(write(tmp_path / "v2.nii.gz", values(1))), "final", {**INFO, "model_version": 4})
    versions = store.labels.versions("a")
    assert [v.model_version for v in versions] == [3, 4]
    assert np.array_equal(stored(versions[0].file), values(0))
    assert np.array_equal(stored(versions[1].file), values(1))


def test_deleting_a_label(store: SafeDatastore, upload: Path) -> None:
    store.save_label("a", str(upload), "final", dict(INFO))
    store.remove_label("a", "final")
    assert store.get_label_uri("a", "final") == ""
    assert store.pool.training_list() == []
    assert len(store.labels.versions("a")) == 1
    assert "no label a" in refusal(404, store.remove_label, "a", "final")


def test_unknown_images(store: SafeDatastore, upload: Path) -> None:
    assert store.get_image_uri("nowhere") == ""
    assert store.get_image("nowhere") is None
    assert store.get_image_info("nowhere") == {}
    assert store.get_label_uri("nowhere", "final") == ""
    assert "no image nowhere" in refusal(404, store.save_label, "nowhere", str(upload), "final", {})
    assert "no image nowhere" in refusal(404, store.remove_image, "nowhere")
    assert "no image nowhere" in refusal(404, store.update_image_info, "nowhere", {})
    assert "no label nowhere" in refusal(404, store.update_label_info, "nowhere", "final", {})


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "..", ".svgd", "a\0", "a/b", "", "x" * 300, "a\\b", 3, None])
def test_path_tricks(store: SafeDatastore, upload: Path, name: Any) -> None:
    for call in (store.get_image_uri, store.get_image_info, store.get_image, store.remove_image):
        refusal(404, call, name)
    refusal(404, store.save_label, name, str(upload), "final", {})
    refusal(404, store.save_label, "a", str(upload), name, {})
    refusal(404, store.get_label_uri, "a", name)
    refusal(404, store.get_label_info, name, "final")
    if name:  # without a name the file's own is taken
        refusal(404, store.add_image, name, str(upload), {})


def test_nothing_is_read_or_written_behind_a_link_that_leads_out(
    store: SafeDatastore, upload: Path, folder: Path, tmp_path: Path
) -> None:
    outside = write(tmp_path / "outside" / "a.nii.gz", values()).parent
    (folder / "labels" / "lnk").symlink_to(outside)
    store.refresh()
    assert store.get_label_uri("a", "lnk") == ""
    sentence = refusal(404, store.save_label, "b", str(upload), "lnk", dict(INFO))
    assert "The folder of the tag lnk is a link that leads out of the studies folder, so nothing is saved" in sentence
    assert "refused/" in sentence
    assert [path.name for path in outside.iterdir()] == ["a.nii.gz"]


@pytest.mark.parametrize("info", [[], "text", 3])
def test_parameters_of_the_wrong_type(store: SafeDatastore, upload: Path, info: Any) -> None:
    refusal(400, store.update_image_info, "a", info)
    if info:
        refusal(400, store.save_label, "a", str(upload), "final", info)
    refusal(400, store.save_label, "a", str(upload), "final", {"label_info": info or 5})


def test_infos_are_merged_and_the_pool_is_seen(store: SafeDatastore, folder: Path) -> None:
    store.update_image_info("a", {"strategy": {"svgd": {"ts": 1}}})
    store.update_image_info("a", {"note": "x", "labelled": "a client's own word"})
    store.pool.replace_ranking(2, [RankingRow("b"), RankingRow("a", 0.5, 0.25, 0.125)])
    store.pool.flag("a", "motion")
    info = store.get_image_info("a")
    assert (info["note"], info["strategy"]["svgd"]["ts"], info["path"]) == ("x", 1, str(folder / "a.nii.gz"))
    assert (info["rank"], info["score"], info["entropy"], info["mutual_information"]) == (2, 0.5, 0.25, 0.125)
    assert (info["labelled"], info["flagged"], info["model_version"]) == (False, "motion", 2)
    everything = store.json()
    assert everything["objects"]["a"]["image"]["info"]["flagged"] == "motion"
    assert everything["objects"].keys() == {"a", "b", "c"}
    json.dumps(everything)


def test_names_of_the_data_set_stay(store: SafeDatastore, open_store: Callable[..., SafeDatastore]) -> None:
    store.set_name("hips")
    store.set_description("many hips")
    assert (open_store().name(), open_store().description()) == ("hips", "many hips")


def test_adding_and_removing_images(store: SafeDatastore, tmp_path: Path, upload: Path, folder: Path) -> None:
    image = write(tmp_path / "tmp123.nii.gz", np.ones(SHAPE, np.int16))
    assert store.add_image("d", str(image), {"note": 1}) == "d"
    assert store.add_image("", str(image), {}) == "tmp123"
    assert store.list_images() == ["a", "b", "c", "d", "tmp123"]
    assert store.get_image_info("d")["note"] == 1
    assert "no image" in refusal(400, store.add_image, "e", str(tmp_path / "notes.txt"), {})
    store.save_label("d", str(upload), "final", dict(INFO))
    assert store.add_image("d", str(image), {}) == "d"  # the same once more
    other = write(tmp_path / "other.nii.gz", np.zeros(SHAPE, np.int16))
    assert "choose another id" in refusal(409, store.add_image, "d", str(other), {})
    store.remove_image("d")
    assert store.list_images() == ["a", "b", "c", "tmp123"]
    assert not (folder / "d.nii.gz").exists()
    assert not (folder / "labels/final/d.nii.gz").exists()
    assert len(store.labels.versions("d")) == 1


def test_a_label_goes_with_its_image_although_the_folder_is_read_meanwhile(
    store: SafeDatastore, upload: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save_label("a", str(upload), "final", dict(INFO))
    labels = store.get_labels_by_image_id

    def read_meanwhile(image: str) -> dict[str, str]:
        store.studies.check([image], [])
        return labels(image)

    monkeypatch.setattr(store, "get_labels_by_image_id", read_meanwhile)
    store.remove_image("a")
    assert not (folder / "labels/final/a.nii.gz").exists()
    write(folder / "a.nii.gz", np.full(SHAPE, 7, np.int16))
    store.refresh()
    assert (store.list_images(), store.get_labeled_images()) == (["a", "b", "c"], [])


def test_no_server_starts_over_labels_that_lie_behind_a_link_out(
    open_store: Callable[..., SafeDatastore], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    (folder / "labels").mkdir()
    (folder / "labels" / "final").symlink_to(tmp_path / "disk")
    with pytest.raises(UserError, match=r"The folder of the tag final is a link .*: mount it there, or move its files"):
        open_store()


def test_of_an_image_that_is_a_link_the_link_is_deleted_and_its_label_with_it(
    store: SafeDatastore, folder: Path
) -> None:
    series = folder / ".svgd" / "series"
    series.mkdir()
    (series / "1.dcm").write_bytes(bytes(128) + b"DICM")
    (folder / "d").symlink_to(series)
    write(folder / "labels/final/d.nii.gz", values())
    store.refresh()
    store.remove_image("d")
    assert store.list_images() == ["a", "b", "c"]
    assert not (folder / "d").is_symlink()
    assert not (folder / "labels/final/d.nii.gz").exists()
    assert (series / "1.dcm").exists()
    assert len(store.labels.versions("d")) == 1


def test_an_image_whose_labels_cannot_be_deleted_stays(store: SafeDatastore, upload: Path, folder: Path) -> None:
    store.save_label("a", str(upload), "final", dict(INFO))
    store.pool.database.connection.execute(
        "CREATE TRIGGER refuse BEFORE DELETE ON labels BEGIN SELECT RAISE(ABORT, 'refused'); END"
    )
    before = set(folder.rglob("*.nii.gz"))
    refusal(507, store.remove_image, "a")
    assert set(folder.rglob("*.nii.gz")) >= before
    assert store.get_labeled_images() == ["a"]


def test_a_large_image_that_is_coming_in_keeps_nobody_from_writing(
    store: SafeDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state store's lock is every process's: a training could not publish its committee."""
    image = write(tmp_path / "large.nii.gz", np.ones(SHAPE, np.int16))
    copied = shutil.copyfileobj

    def slow(*arguments: Any) -> None:
        other = Database(store.pool.database.folder)
        other.connection.execute("PRAGMA busy_timeout = 0")
        other.set("written", "meanwhile")
        other.close()
        copied(*arguments)

    monkeypatch.setattr(shutil, "copyfileobj", slow)
    assert store.add_image("large", str(image), {}) == "large"
    assert store.pool.database.get("written") == "meanwhile"


def test_an_image_is_not_replaced_whoever_works_on_it(store: SafeDatastore, tmp_path: Path, folder: Path) -> None:
    other = write(tmp_path / "other.nii.gz", np.full(SHAPE, 7, np.int16))
    for extension in (".nii.gz", ".nii"):
        file = write(tmp_path / f"other{extension}", np.full(SHAPE, 7, np.int16))
        assert "choose another id" in refusal(409, store.add_image, "a", str(file), {})
    write(folder / "dropped.nii.gz", np.ones(SHAPE, np.int16))  # and not noticed yet
    refusal(409, store.add_image, "dropped", str(other), {})
    assert np.array_equal(stored(store.get_image_uri("a")), np.zeros(SHAPE))
    assert np.array_equal(stored(folder / "dropped.nii.gz"), np.ones(SHAPE))
    assert not (folder / "a.nii").exists()


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_label_of_an_image_that_was_replaced_meanwhile_is_refused(
    store: SafeDatastore, tmp_path: Path, upload: Path, monkeypatch: pytest.MonkeyPatch, comes_back: bool
) -> None:
    larger = write(tmp_path / "larger.nii.gz", np.zeros((20, 20, 20), np.int16))

    def slowly(*arguments: Any, **named: Any) -> Any:
        converted = convert_label(*arguments, **named)
        store.remove_image("a")
        if comes_back:
            store.add_image("a", str(larger), {})
        return converted

    monkeypatch.setattr("svgd_label.server.datastore.convert_label", slowly)
    sentence = refusal(409, store.save_label, "a", str(upload), "final", dict(INFO))
    assert "was replaced while its label was saved" in sentence
    assert "refused/" in sentence
    assert store.get_label_uri("a", "final") == ""
    assert list((store.studies.folder / "labels" / "final").iterdir()) == []


def test_what_a_client_is_told_of_its_label(store: SafeDatastore, tmp_path: Path) -> None:
    file = write(tmp_path / "anterior.nii.gz", values() % 2)
    info = {"label_info": [{"name": "anterior", "idx": 1}, {"name": "cyst", "idx": 3}]}
    for version in (1, 2):
        store.save_label("a", str(file), "final", info)
        told = {"ignored": ["cyst"], "missing": ["posterior"], "version": version}
        assert store.saved_label("a", "final") == told


def test_the_archive_holds_what_is_labelled(store: SafeDatastore, upload: Path) -> None:
    refusal(404, store.get_dataset_archive, None)
    for image in "ab":
        store.save_label(image, str(upload), "final", dict(INFO))
    with zipfile.ZipFile(store.get_dataset_archive(None)) as archive:
        names = {"image/a.nii.gz", "label/a.nii.gz", "image/b.nii.gz", "label/b.nii.gz", "metadata.json"}
        assert set(archive.namelist()) == names
        assert json.loads(archive.read("metadata.json"))["objects"].keys() == {"a", "b", "c"}
    with zipfile.ZipFile(store.get_dataset_archive(1)) as archive:
        assert len(archive.namelist()) == 3


@contextlib.contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """As on a full disk, for this process."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_an_archive_leaves_room_for_labels(store: SafeDatastore, upload: Path, folder: Path) -> None:
    store.save_label("a", str(upload), "final", dict(INFO))
    os.truncate(folder / "a.nii.gz", shutil.disk_usage(folder).free * 3 // 4)  # takes no room itself
    with files_no_longer_than(1 << 20):  # should it be written after all
        assert "fewer images with limit_cases" in refusal(507, store.get_dataset_archive, None)
    assert list((folder / ".svgd" / "archives").iterdir()) == []


def test_an_archive_that_the_disk_refuses_leaves_nothing_there(
    store: SafeDatastore, upload: Path, folder: Path
) -> None:
    store.save_label("a", str(upload), "final", dict(INFO))
    (folder / "a.nii.gz").write_bytes(bytes(10_000))
    with files_no_longer_than(5000):
        assert "Nothing was stored" in refusal(507, store.get_dataset_archive, None)
    assert list((folder / ".svgd" / "archives").iterdir()) == []


def test_many_threads_save_at_once(store: SafeDatastore, tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(5):
                seed = 10 * number + turn
                file = write(tmp_path / f"{seed}.nii.gz", values(seed))
                store.save_label("abc"[seed % 3], str(file), "final", dict(INFO))
                store.update_image_info("a", {f"note {seed}": seed})
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(store.labels.versions()) == 20
    assert len([key for key in store.get_image_info("a") if key.startswith("note")]) == 20
