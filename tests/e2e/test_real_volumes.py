"""A short journey on real volumes and on a folder of DICOM, and what one default training learns from ten labels."""

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.e2e.server import Server, itk, mean_dice, voxels

from svgd_label import checkpoint
from svgd_label.inference import segment
from svgd_label.tasks import load_task

pytestmark = pytest.mark.slow


def test_next_infer_correct_save_next(real: Server, hippocampus: Path) -> None:
    completed = real.slicer().info()["datastore"]["completed"]
    first = real.next_sample("ann")
    assert first["from"] == "queue"
    assert first["model_version"] == 1
    assert not first["labelled"]
    assert real.next_sample("bob")["id"] != first["id"]

    result, params = real.infer(first["id"])
    assert params["model_version"] == 1
    if first["id"].startswith("hippocampus"):
        image = nibabel.load(real.studies / f"{first['id']}.nii.gz")
        assert isinstance(image, nibabel.Nifti1Image)
        assert result.shape == image.shape
        np.testing.assert_allclose(result.affine, image.affine, atol=1e-4)
    corrected = real.folder / "corrected.nii.gz"
    truth = hippocampus / "labelsTr" / f"{first['id']}.nii.gz"
    if truth.exists():
        shutil.copy(truth, corrected)
    else:
        nibabel.save(result, corrected)
    before = real.query("SELECT image, mutual_information FROM ranking")
    real.save_label(first["id"], corrected, client="ann")
    assert real.slicer().info()["datastore"]["completed"] == completed + 1
    assert real.next_sample("ann")["id"] != first["id"]
    real.wait_for(
        lambda: real.query("SELECT image, mutual_information FROM ranking") != before,
        "a ranking that knows the new label",
    )
    versions = real.query(f"SELECT client, model_version FROM label_versions WHERE image = '{first['id']}'")
    assert versions == [("ann", 1)], "it is kept who corrected the label, and what it was corrected from"


def test_a_dicom_series_is_segmented_on_its_own_grid_and_labelled(real: Server, dicom_series: Path) -> None:
    reader = itk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(dicom_series)))
    series = reader.Execute()
    answer = real.ohif_infer("mr_series")
    assert answer.status_code == 200, answer.text
    file = real.folder / "dicom.nrrd"
    file.write_bytes(answer.content)
    result = itk.ReadImage(str(file))
    assert result.GetSize() == series.GetSize()
    np.testing.assert_allclose(result.GetSpacing(), series.GetSpacing(), rtol=1e-3)
    # ITK and pydicom may count the slices from opposite ends: what must agree is where the voxels are.
    np.testing.assert_allclose(box(result), box(series), atol=0.05)

    real.save_label("mr_series", file)
    stored = real.studies / "labels" / "final" / "mr_series.nii.gz"
    assert stored.is_file()
    saved = itk.ReadImage(str(stored))
    np.testing.assert_allclose(box(saved), box(series), atol=0.05)
    for value in (0, 1, 2):
        assert np.sum(itk.GetArrayFromImage(saved) == value) == np.sum(itk.GetArrayFromImage(result) == value)
    assert real.image_info("mr_series")["labelled"]


def box(image: Any) -> NDArray[np.float64]:
    """The lowest and the highest corner of the volume in millimetres, (2, 3)."""
    ends = [(0, n - 1) for n in image.GetSize()]
    corners = [image.TransformIndexToPhysicalPoint((x, y, z)) for x in ends[0] for y in ends[1] for z in ends[2]]
    return np.array([np.min(corners, axis=0), np.max(corners, axis=0)])


def test_ten_labels_and_one_default_training_reach_a_dice_of_seventy(hippocampus: Path, tmp_path: Path) -> None:
    splits = json.loads((hippocampus / "splits.json").read_text(encoding="utf-8"))
    ten, unseen = ([Path(file).name[:-7] for file in files] for files in (splits["pool"][:10], splits["test"][:15]))
    server = Server(tmp_path, {"task": "hippocampus", "initial": "none"})
    final = server.studies / "labels" / "final"
    final.mkdir(parents=True)
    for image in [*ten, *unseen]:
        shutil.copy(hippocampus / "imagesTr" / f"{image}.nii.gz", server.studies)
    for image in ten:
        shutil.copy(hippocampus / "labelsTr" / f"{image}.nii.gz", final)
    truth = {image: voxels(hippocampus / "labelsTr" / f"{image}.nii.gz") for image in unseen}
    task = load_task("hippocampus")
    untrained = checkpoint.new_committee(task, seed=0).to(torch.device("cpu"))
    before = [
        mean_dice(segment(task, untrained, str(server.studies / f"{image}.nii.gz")).labels, truth[image])
        for image in unseen
    ]
    try:
        server.start()
        stats = server.train(pretrained=False)
        assert stats["steps"] == task.steps
        after = [mean_dice(np.asarray(server.infer(image)[0].dataobj), truth[image]) for image in unseen]
    finally:
        server.kill()
    print(f"Dice on {len(unseen)} unseen volumes: untrained {np.mean(before):.3f}, trained {np.mean(after):.3f}")
    assert np.mean(before) < 0.3
    assert np.mean(after) >= 0.70
