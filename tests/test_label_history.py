"""``python main.py labels``: versions are listed, brought back and taken out, and nothing is overwritten."""

import csv
import gzip
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from svgd_label.cli import app
from svgd_label.errors import UserError
from svgd_label.pool import FINAL, Database, LabelStore, Pool, Studies
from svgd_label.server.dicom.address import read_address, series_folder


def volume(value: int, *, spacing: float = 1.0) -> bytes:
    image = nibabel.Nifti1Image(np.full((4, 5, 6), value, np.uint8), np.diag([spacing, 1.0, 1.0, 1.0]))
    return gzip.compress(image.to_bytes(), mtime=0)


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    folder.mkdir()
    for image in "ab":
        (folder / f"{image}.nii.gz").write_bytes(volume(0))
    place = Studies(folder, Pool(Database(folder / ".svgd", task="t"), validation="none", max_frequency=10))
    place.reconcile()
    store = LabelStore(place)
    for number in (1, 2):
        file = store.incoming(FINAL)
        file.write_bytes(volume(number))
        version = store.save("a", FINAL, file, info={}, client="anna", model_version=number)
        assert version is not None
    store.record_dice("a", 2, 0.875)
    return folder


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["labels", *map(str, arguments)], catch_exceptions=False, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def test_a_list_has_the_last_version_and_show_has_all(studies: Path) -> None:
    listed = run("list", "--studies", studies)
    assert "anna" in listed
    assert "model version 2" in listed
    assert "0.875" in listed
    assert "model version 1" in run("show", "a", "--studies", studies)


def test_restoring_brings_the_content_back_as_a_new_version(studies: Path) -> None:
    label = studies / "labels" / FINAL / "a.nii.gz"
    assert label.read_bytes() == volume(2)
    assert "as version 3" in run("restore", "a", "1", "--studies", studies)
    assert label.read_bytes() == volume(1)
    versions = sorted((studies / ".svgd" / "versions" / "a").iterdir())
    assert [file.read_bytes() for file in versions] == [volume(1), volume(2), volume(1)]


def test_a_version_that_does_not_fit_the_image_any_more_stays_a_version(studies: Path) -> None:
    (studies / "a.nii.gz").write_bytes(volume(0, spacing=2.0))
    with pytest.raises(UserError, match=r"^a: version 1 does not fit the image .* save it on the image's grid$"):
        run("restore", "a", "1", "--studies", studies)
    assert (studies / "labels" / FINAL / "a.nii.gz").read_bytes() == volume(2)


def test_an_export_holds_every_present_label_and_who_saved_it(studies: Path, tmp_path: Path) -> None:
    dropped = studies / "labels" / FINAL / "b.nii.gz"
    dropped.write_bytes(volume(3))
    Studies(studies, Pool(Database(studies / ".svgd"), validation="none", max_frequency=1)).reconcile()
    run("export", tmp_path / "out", "--studies", studies)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").glob("*.gz")} == {
        "a.nii.gz": volume(2),
        "b.nii.gz": volume(3),
    }
    rows = list(csv.DictReader((tmp_path / "out" / "labels.csv").open()))
    assert [(row["image"], row["by"], row["dice"]) for row in rows] == [("a", "anna", "0.875"), ("b", None, None)]
    (studies / "b.nii.gz").unlink()
    Studies(studies, Pool(Database(studies / ".svgd"), validation="none", max_frequency=1)).reconcile()
    said = run("export", tmp_path / "again", "--studies", studies)
    assert "1 labels are in" in said
    assert "Not those whose images are gone, which stay where they are: b." in said


def test_a_label_is_said_to_be_whose_it_is_and_not_whose_the_last_version_is(studies: Path, tmp_path: Path) -> None:
    place = Studies(studies, Pool(Database(studies / ".svgd"), validation="none", max_frequency=1))
    store = LabelStore(place)

    def exported(name: str) -> list[tuple[str | None, ...]]:
        run("export", tmp_path / name, "--studies", studies)
        rows = csv.DictReader((tmp_path / name / "labels.csv").open())
        return [(row["image"], row["version"], row["by"]) for row in rows]

    file = store.incoming("second")
    file.write_bytes(volume(3))
    store.save("a", "second", file, info={}, client="ben", model_version=None)
    assert exported("with a second opinion") == [("a", "2", "anna")]
    assert "ben" not in run("list", "--studies", studies)
    (studies / "labels" / FINAL / "a.nii.gz").write_bytes(volume(4))
    for name in ("exchanged by hand", "and the server knows"):
        assert exported(name) == [("a", None, None)]
        listed = run("list", "--studies", studies)
        assert "found in the folder" in listed
        assert "anna" not in listed
        place.reconcile()
    store.remove("a", FINAL)
    assert "no label now" in run("list", "--studies", studies)
    assert exported("deleted") == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("show", "b"), "no label of it was ever saved"),
        (("restore", "a", "9"), "there is no version 9"),
        (("export", "."), "not empty"),
    ],
)
def test_what_is_not_there_is_said_in_a_sentence(studies: Path, arguments: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        run(*arguments, "--studies", studies)


def test_the_address_of_a_dicom_server_is_enough(
    studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    address = "http://127.0.0.1:8042/dicom-web"
    state = read_address(address).state
    shutil.copytree(studies / ".svgd", state)
    shutil.copytree(studies, series_folder(state), ignore=shutil.ignore_patterns(".svgd"))
    assert "anna" in run("list", "--studies", f"{address}/")
    assert "as version 3" in run("restore", "a", "1", "--studies", address)
    moved = state.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="no server has kept its state there"):
        run("list", "--studies", address)
    assert "anna" in run("show", "a", "--studies", address, "--state", moved)


def test_a_folder_that_was_never_served_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no server has kept its state there"):
        run("list", "--studies", tmp_path)
