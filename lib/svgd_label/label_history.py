"""``python main.py labels``: what was saved when and by whom, older versions brought back, all labels taken out."""

import csv
import shutil
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from svgd_label.errors import UserError
from svgd_label.pool import FINAL, Database, LabelStore, LabelVersion, Pool, Studies
from svgd_label.server.dicom.address import is_web, read_address, series_folder

app = typer.Typer(no_args_is_help=True, help="Labels of a study: list, show, restore, export.")

StudiesOption = Annotated[
    str, typer.Option("--studies", help="The studies folder, or the address of the DICOMweb server, as served.")
]
StateOption = Annotated[
    Path | None, typer.Option("--state", help="The state folder, where the server was given one with --conf state.")
]


@app.command("list")
def list_labels(studies: StudiesOption, state: StateOption = None) -> None:
    """Every image that has been labelled, with the version that is its label now."""
    store, _ = _open(studies, state)
    table = Table("image", "versions", "last saved", "by", "corrected from", "Dice with that")
    versions, labels = _by_image(store.versions()), store.in_place()
    for image in sorted({*versions, *labels}):
        version = labels.get(image)
        without = ("", "found in the folder" if image in labels else "no label now", "", "")
        words = without if version is None else _words(version)
        table.add_row(image, str(len(versions.get(image, ()))), *words)
    Console().print(table)


@app.command()
def show(image: str, studies: StudiesOption, state: StateOption = None) -> None:
    """Every version of one image's label, oldest first."""
    store, _ = _open(studies, state)
    versions = store.versions(image)
    if not versions:
        raise UserError(f"{image}: no label of it was ever saved in {studies}")
    table = Table("version", "saved", "by", "corrected from", "Dice with that", "file")
    for version in versions:
        table.add_row(str(version.number), *_words(version), str(version.file))
    Console().print(table)


@app.command()
def restore(image: str, version: int, studies: StudiesOption, state: StateOption = None) -> None:
    """Make an older version the label again. It becomes a new version; nothing is overwritten."""
    from svgd_label.labels import LabelError, check_grid

    store, place = _open(studies, state)
    found = next((v for v in store.versions(image) if v.number == version), None)
    if found is None:
        raise UserError(f"{image}: there is no version {version}; 'labels show {image}' lists what there is")
    path = place.image_path(image)
    if path is None:
        raise UserError(f"{image}: the image is not in {studies}; put it back there, then restore its label")
    try:
        check_grid(found.file, image=path)  # the image's file may have become another one since
        made = store.restore(image, version, client="python main.py labels restore")
    except LabelError as error:
        raise UserError(f"{image}: version {version} does not fit the image and cannot be restored: {error}") from error
    except ValueError as error:
        raise UserError(str(error)) from error
    assert made is not None
    typer.echo(f"{image}: version {version} is the label again, as version {made.number}.")


@app.command()
def export(folder: Path, studies: StudiesOption, state: StateOption = None) -> None:
    """Copy all present labels and a table of who saved them when into a new folder."""
    store, place = _open(studies, state)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: not empty; give a new folder, so that nothing is overwritten")
    folder.mkdir(parents=True, exist_ok=True)
    gone, labels = [], store.in_place()
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "file", "version", "saved", "by", "model_version", "dice"])
        for image, version in labels.items():
            path = place.label_path(image, FINAL)
            if path is None:
                gone.append(image)
                continue
            shutil.copy2(path, folder / path.name)
            # A label that was put into the folder by hand has no version, and nobody knows by whom.
            saved = (
                (version.number, _time(version), version.client, version.model_version, version.dice) if version else ()
            )
            table.writerow([image, path.name, *saved])
    typer.echo(f"{len(labels) - len(gone)} labels are in {folder}.")
    if gone:
        typer.echo(f"Not those whose images are gone, which stay where they are: {', '.join(gone)}.", err=True)


def _open(studies: str, state: Path | None) -> tuple[LabelStore, Studies]:
    if is_web(studies):
        state = state or read_address(studies).state
        folder = series_folder(state)
    else:
        folder = Path(studies)
        state = state or folder / ".svgd"
    if not (state / "state.sqlite").is_file():
        raise UserError(f"{state}: no server has kept its state there; give the studies that it served, or --state")
    # Whether an image is kept back for validation was decided, and stored, when it was first labelled.
    pool = Pool(Database(state), validation="none", max_frequency=1)
    place = Studies(folder.resolve(), pool)
    return LabelStore(place), place


def _by_image(versions: list[LabelVersion]) -> dict[str, list[LabelVersion]]:
    grouped: dict[str, list[LabelVersion]] = {}
    for version in versions:
        grouped.setdefault(version.image, []).append(version)
    return grouped


def _time(version: LabelVersion) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(version.saved))


def _words(version: LabelVersion) -> tuple[str, str, str, str]:
    return (
        _time(version),
        version.client or "",
        "" if version.model_version is None else f"model version {version.model_version}",
        "" if version.dice is None else f"{version.dice:.3f}",
    )
