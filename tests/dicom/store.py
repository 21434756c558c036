"""What tests do with a datastore on a DICOM server: load series, save labels, see what was stored."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from numpy.typing import NDArray
from tests.dicom.series import AXIAL, TILTED, labels_on_grid, make_series

from svgd_label.images import geometry
from svgd_label.server.dicom.datastore import DicomDatastore
from svgd_label.server.dicom.orthanc import Orthanc
from svgd_label.server.dicom.takeover import Takeover

Open = Callable[[], DicomDatastore]


def load(orthanc: Orthanc, tmp_path: Path, *, seed: int = 0) -> str:
    """A series of the tests' own on the server."""
    uid = make_series(tmp_path / f"files {seed}", TILTED if seed else AXIAL, seed=seed)
    orthanc.load(tmp_path / f"files {seed}")
    return uid


def label_map(store: DicomDatastore, image: str, value: int = 2) -> NDArray[np.uint8]:
    shape, affine = geometry(store.get_image_uri(image))
    labels = labels_on_grid(shape, affine, AXIAL if shape == AXIAL.shape else TILTED)
    return np.where(labels > 0, value, 0).astype(np.uint8) if value else np.zeros(shape, np.uint8)


def save(store: DicomDatastore, image: str, labels: NDArray[np.uint8], tmp_path: Path) -> None:
    file = tmp_path / "label.nii.gz"
    nibabel.save(nibabel.Nifti1Image(labels, geometry(store.get_image_uri(image))[1]), file)
    store.save_label(image, str(file), "final", {"client_id": "anna"})


def instances(orthanc: Orthanc, modality: str = "SEG") -> dict[str, pydicom.Dataset]:
    """What the server holds, by SOPInstanceUID."""
    found = {}
    for series in orthanc.ask("GET", "/series", params={"expand": ""}).json():
        if series["MainDicomTags"]["Modality"] == modality:
            for instance in series["Instances"]:
                file = pydicom.dcmread(io.BytesIO(orthanc.ask("GET", f"/instances/{instance}/file").content))
                found[str(file.SOPInstanceUID)] = file
    return found


def state(store: DicomDatastore, image: str) -> dict[str, Any]:
    found: dict[str, Any] = store.json()["objects"][image]["labels"]["final"]["info"]["dicom_seg"]
    assert found == store.get_label_info(image, "final")["dicom_seg"]
    return found


def takeover(store: DicomDatastore) -> Takeover:
    found = store.mirror._look_further.__self__  # type: ignore[attr-defined]
    assert isinstance(found, Takeover)
    return found


def drawn(store: DicomDatastore, image: str) -> int:
    """The only value of the label, whose shape is always the same."""
    values = np.asarray(nibabel.load(store.get_label_uri(image, "final")).dataobj)
    np.testing.assert_array_equal(values, label_map(store, image, int(values.max())))
    return int(values.max())


def later(store: DicomDatastore) -> None:
    """The next look after the pauses."""
    takeover(store)._patience.keep([])
    store.mirror.synchronise()
