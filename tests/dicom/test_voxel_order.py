"""OHIF takes and gives the voxels of a label map without their place, in the order in which it puts the slices."""

from pathlib import Path

import nrrd
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from tests.dicom.series import GEOMETRIES, Geometry, labels_on_frame, labels_on_grid, make_series

from svgd_label.images import geometry
from svgd_label.labels import convert_label
from svgd_label.server.infer import write_map

pytestmark = pytest.mark.parametrize("shape", GEOMETRIES.values(), ids=GEOMETRIES.keys())


def seen_in_ohif(series: Path, shape: Geometry) -> NDArray[np.uint8]:
    """The structures (X, Y, Z) on slices sorted along row x column, as OHIF's cornerstone3D sorts them."""
    heads = [pydicom.dcmread(file) for file in series.iterdir()]
    normal = np.cross(shape.along, shape.down)
    heads.sort(key=lambda head: float(normal @ np.array(head.ImagePositionPatient, np.float64)))
    return np.stack([labels_on_frame(head, shape).T for head in heads], axis=2)


def test_a_segmentation_is_sent_in_ohifs_order_and_lies_right_by_its_header(shape: Geometry, tmp_path: Path) -> None:
    make_series(tmp_path / "series", shape)
    sides, affine = geometry(tmp_path / "series")
    labels = labels_on_grid(sides, affine, shape)
    file = write_map(labels, affine, ".nrrd", compress=False)
    voxels, header = nrrd.read(str(file))
    np.testing.assert_array_equal(voxels, seen_in_ohif(tmp_path / "series", shape))
    placed = convert_label(file, None, image=tmp_path / "series", labels=["a", "b", "c"], aliases={})
    np.testing.assert_array_equal(placed.array, labels)
    assert header["encoding"] == "raw"
    file.unlink()


def test_a_drawing_that_ohif_sends_lies_where_it_was_seen(shape: Geometry, tmp_path: Path) -> None:
    make_series(tmp_path / "series", shape)
    raw = tmp_path / "label.bin"
    raw.write_bytes(seen_in_ohif(tmp_path / "series", shape).tobytes(order="F"))
    info = [{"name": name, "idx": value} for value, name in enumerate("abc", start=1)]
    converted = convert_label(raw, info, image=tmp_path / "series", labels=["a", "b", "c"], aliases={})
    np.testing.assert_array_equal(converted.array, labels_on_grid(*geometry(tmp_path / "series"), shape))
