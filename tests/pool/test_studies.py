"""The index follows the files in the folder, whoever puts them there."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from svgd_label.errors import UserError
from svgd_label.pool import Database, LabelStore, Pool, RankingRow, Studies


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "studies" / "labels" / "final").mkdir(parents=True)
    return tmp_path / "studies"


@pytest.fixture
def studies(folder: Path, database: Database) -> Studies:
    return Studies(folder, Pool(database, validation="fifth", max_frequency=10))


def put(path: Path, content: str = "image") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def dicom(folder: Path, slices: int = 2) -> None:
    folder.mkdir()
    for i in range(slices):
        (folder / f"{i}.dcm").write_bytes(bytes(128) + b"DICM")


def images(studies: Studies) -> list[str]:
    return studies.pool.pool_images()


def test_images_are_files_of_three_kinds_and_folders_of_dicom(studies: Studies, folder: Path) -> None:
    for name in ("a.nii.gz", "b.nii", "c.nrrd", "notes.txt", ".hidden.nii.gz", "reference/x.nii.gz", "e.png"):
        put(folder / name)
    dicom(folder / "d")
    dicom(folder / "logs")
    dicom(folder / ".svgd")
    (folder / "broken.nii.gz").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.nii")
    studies.reconcile()
    assert images(studies) == ["a", "b", "c", "d"]
    assert studies.image_path("d") == folder / "d"
    assert studies.image_path("b") == folder / "b.nii"
    assert studies.image_path("broken") is None


def test_of_two_files_with_one_id_one_is_taken_with_a_warning(
    studies: Studies, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(folder / "a.nii")
    put(folder / "a.nii.gz")
    studies.reconcile()
    studies.reconcile()
    assert studies.image_path("a") == folder / "a.nii.gz"
    assert [record.message for record in caplog.records] == [
        f"{folder / 'a.nii'} is left out: a.nii.gz has the same id."
    ]
    (folder / "a.nii.gz").unlink()
    studies.reconcile()
    assert studies.image_path("a") == folder / "a.nii"


def test_names_that_cannot_be_stored_are_left_out(studies: Studies, folder: Path) -> None:
    put(folder / "a.nii")
    (Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.nii"))).write_text("")
    put(folder / f"{'x' * 240}.nii")
    studies.reconcile()
    assert images(studies) == ["a"]


def test_nothing_changed_means_nothing_is_written(studies: Studies, folder: Path, database: Database) -> None:
    put(folder / "a.nii")
    put(folder / "labels/final/a.nii.gz")
    dicom(folder / "d")
    assert studies.reconcile() == 3
    before = database.connection.total_changes
    assert studies.reconcile() == 0
    assert database.connection.total_changes == before


def test_labels_found_together_are_decided_by_id_and_count_as_labelled(studies: Studies, folder: Path) -> None:
    for name in "fedcba":
        put(folder / f"{name}.nii")
        put(folder / f"labels/final/{name}.nii.gz")
    put(folder / "labels/final/of-no-image.nii.gz")
    put(folder / "labels/original/a.nii.gz")
    studies.reconcile()
    assert studies.pool.validation_list() == ["e"]
    assert studies.pool.labelled() == ["a", "b", "c", "d", "f"]
    assert studies.label_path("a", "original") == folder / "labels/original/a.nii.gz"


def test_a_label_that_goes_takes_its_frequency_along(studies: Studies, folder: Path) -> None:
    put(folder / "a.nii")
    put(folder / "labels/final/a.nrrd")
    studies.reconcile()
    assert studies.label_path("a", "final") == folder / "labels/final/a.nrrd"
    (folder / "labels/final/a.nrrd").unlink()
    studies.reconcile()
    assert studies.pool.training_list() == []
    assert studies.label_path("a", "final") is None


def test_a_share_that_drops_out_costs_nothing(studies: Studies, folder: Path, tmp_path: Path) -> None:
    for name in "abcde":
        put(folder / f"{name}.nii")
        put(folder / f"labels/final/{name}.nii.gz")
    studies.reconcile()
    studies.pool.replace_ranking(1, [RankingRow("a")])
    studies.pool.acquire(1, "entropy_mi", 1)
    before = studies.pool.training_list(), studies.pool.validation_list()
    folder.rename(tmp_path / "away")
    studies.reconcile()
    folder.mkdir()
    studies.reconcile()
    assert images(studies) == []
    assert studies.pool.training_list() == []
    shutil.rmtree(folder)
    (tmp_path / "away").rename(folder)
    studies.reconcile()
    assert (studies.pool.training_list(), studies.pool.validation_list()) == before
    assert before[0][0].frequency == 2


def test_another_file_under_the_same_name_is_another_image(studies: Studies, folder: Path) -> None:
    put(folder / "a.nii")
    studies.reconcile()
    studies.pool.mark_unusable("a", "truncated")
    put(folder / "a.nii", "a whole image")
    studies.reconcile()
    assert images(studies) == ["a"]


def test_a_label_whose_image_has_become_another_is_kept_and_said_to_be_one_to_look_at(
    studies: Studies, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sentence = "its file has changed since its label was saved: look at the label again"

    def told() -> tuple[bool, str | None]:
        return studies.pool.overview.image_state("a")["image_changed"], studies.pool.overview.row("a").why

    put(folder / "a.nii")
    put(folder / "labels/final/a.nii.gz", "label")
    studies.reconcile()
    studies.pool.inferred("a", 3)
    assert told() == (False, None)
    put(folder / "a.nii", "another patient")
    studies.reconcile()
    assert told() == (True, sentence)
    assert [message for message in caplog.messages if sentence in message] == [f"a: {sentence}."]
    assert studies.pool.labelled() == ["a"], "perhaps only its header was mended"
    store = LabelStore(studies)
    file = store.incoming("final")
    file.write_text("a label of the new file")
    version = store.save("a", "final", file, info={}, client=None, model_version=None)
    assert version is not None
    assert version.model_version is None, "what was proposed was proposed for the old file"
    assert told() == (False, None)
    put(folder / "a.nii", "a study that was")
    put(folder / "labels/final/a.nii.gz", "copied back as a whole")
    studies.reconcile()
    assert told() == (False, None)
    assert len([message for message in caplog.messages if sentence in message]) == 1


def test_the_old_index_is_read_once_and_left_alone(studies: Studies, folder: Path) -> None:
    put(folder / "a.nii")
    put(folder / "labels/final/a.nii.gz")
    objects = {
        "a": {"image": {"ext": ".nii", "info": {"note": 1}}, "labels": {"final": {"ext": "", "info": {"by": "anna"}}}},
        "gone": {"image": {"ext": ".nii", "info": {}}, "labels": {}},
    }
    file = folder / "datastore_v2.json"
    file.write_text(json.dumps({"name": "hips", "description": "many", "objects": objects}))
    content = file.read_bytes()
    studies.reconcile()
    studies.import_index(file)
    rows = [
        json.loads(studies.database.connection.execute(f"SELECT info FROM {table}").fetchone()[0])
        for table in ("images", "labels")
    ]
    assert rows[0]["note"] == 1
    assert rows[1]["by"] == "anna"
    assert studies.database.get("name") == "hips"
    studies.update_info("a", {"note": 2})
    studies.import_index(file)
    assert json.loads(studies.database.connection.execute("SELECT info FROM images").fetchone()[0])["note"] == 2
    assert file.read_bytes() == content


@pytest.mark.parametrize("content", ["", "{", "[]", '{"objects": []}'])
def test_half_an_old_index_is_named_and_left_alone(
    studies: Studies, folder: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = folder / "datastore_v2.json"
    file.write_text(content)
    with caplog.at_level(logging.WARNING):
        studies.import_index(file)
    assert "datastore_v2.json cannot be read" in caplog.text


def test_an_entry_of_the_old_index_that_cannot_be_read_costs_no_other(
    studies: Studies, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for image in "abc":
        put(folder / f"{image}.nii")
    file = folder / "datastore_v2.json"
    file.write_text(
        """{"objects": {
            "a": 3,
            "b": {"image": {"info": {"size": 1e999}}},
            "c": {"image": {"info": {"mean": NaN, "note": 1}}}
        }}"""
    )
    studies.reconcile()
    studies.import_index(file)
    assert [record.args[0] for record in caplog.records if isinstance(record.args, tuple)] == ["a", "b"]
    read = studies.database.connection.execute
    assert [row[0] for row in read("SELECT json_valid(info) FROM images")] == [1, 1, 1]
    info = json.loads(read("SELECT info FROM images WHERE image = 'c'").fetchone()[0])
    assert (info["mean"], info["note"]) == (None, 1)


def test_a_label_saved_while_the_folder_is_read_stays(
    studies: Studies, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save between the reading of the folder and the taking over of what differs must not be undone."""
    put(folder / "a.nii")
    studies.reconcile()
    store = LabelStore(studies)
    check: Callable[..., int] = studies.check

    def save_first(*arguments: object) -> int:
        file = store.incoming("final")
        file.write_text("label")
        store.save("a", "final", file, info={}, client=None, model_version=None)
        return check(*arguments)

    monkeypatch.setattr(studies, "check", save_first)
    put(folder / "b.nii")
    studies.reconcile()
    assert studies.pool.labelled() == ["a"]
    assert len(store.versions("a")) == 1
    assert images(studies) == ["a", "b"]


def test_no_link_that_leads_out_is_followed_below_the_top_either(
    studies: Studies, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "outside" / "a.nii.gz", "private")
    put(folder / "a.nii.gz")
    (folder / "labels" / "inner").symlink_to("final")
    dicom(folder / "d")
    (folder / "d" / "loop.dcm").symlink_to("loop.dcm")
    studies.reconcile()
    assert images(studies) == ["a", "d"]
    assert studies.tags() == ["final", "inner"]
    store = LabelStore(studies)
    for tag in ("linked", "later"):
        if tag == "later":  # a folder that has turned into a link after it was read
            put(folder / "labels" / tag / "a.nii.gz", "label")
            studies.reconcile()
            assert studies.label_path("a", tag) is not None
            shutil.rmtree(folder / "labels" / tag)
        (folder / "labels" / tag).symlink_to(tmp_path / "outside")
        assert studies.label_path("a", tag) is None
        studies.check([], [(tag, "a")])
        studies.reconcile()
        assert studies.tags() == ["final", "inner"]
        assert studies.label_path("a", tag) is None
        with pytest.raises(UserError, match=f"the tag {tag} is a link that leads out"):
            store.incoming(tag)
    (folder / "d" / "2.dcm").symlink_to(tmp_path / "outside" / "a.nii.gz")
    assert studies.image_path("d") is None
    studies.reconcile()
    assert images(studies) == ["a"]
    assert f"{folder / 'd'} is left out: 2.dcm is a link that leads out of the studies folder." in caplog.messages
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["a.nii.gz"]
    free = Studies(folder, studies.pool, links=True)
    assert free.image_path("a") == folder / "a.nii.gz"
    assert free.tags() == ["final", "inner", "later", "linked"]


def test_labels_that_are_a_link_out_as_a_whole_are_left_out(studies: Studies, folder: Path, tmp_path: Path) -> None:
    put(folder / "a.nii")
    shutil.move(folder / "labels", tmp_path / "outside")
    put(tmp_path / "outside" / "final" / "a.nii.gz", "private")
    (folder / "labels").symlink_to(tmp_path / "outside")
    studies.reconcile()
    assert (studies.tags(), studies.label_path("a", "final")) == ([], None)


def test_labels_that_have_become_a_link_out_are_not_taken_for_deleted(
    studies: Studies, folder: Path, tmp_path: Path
) -> None:
    put(folder / "a.nii")
    put(folder / "labels/final/a.nii.gz")
    studies.reconcile()
    known = [case.image for case in studies.pool.training_list()]
    shutil.move(folder / "labels/final", tmp_path / "outside")
    (folder / "labels/final").symlink_to(tmp_path / "outside")
    assert studies.reconcile() == 0
    assert [case.image for case in studies.pool.training_list()] == known == ["a"]
    assert studies.label_path("a", "final") is None


def test_a_label_that_has_just_become_a_link_out_is_not_read(studies: Studies, folder: Path, tmp_path: Path) -> None:
    put(folder / "a.nii")
    put(folder / "labels/final/a.nii.gz")
    studies.reconcile()
    put(tmp_path / "private.nii.gz", "private")
    (folder / "labels/final/a.nii.gz").unlink()
    (folder / "labels/final/a.nii.gz").symlink_to(tmp_path / "private.nii.gz")
    assert studies.label_path("a", "final") is None
