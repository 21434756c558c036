"""A converted label is written to the disk: whole, always alike, or not at all."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from tests.labels.uploads import AFFINE, TRUTH, convert, save

from svgd_label.labels import LabelError, write_label


def test_what_is_written_is_read_again_and_equal_labels_are_equal_bytes(image: Path, tmp_path: Path) -> None:
    converted = convert(save(TRUTH, tmp_path / "label.nii.gz"), None, image)
    write_label(converted, tmp_path / "a.nii.gz")
    write_label(converted, tmp_path / "b.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    stored = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(stored.dataobj), TRUTH)
    np.testing.assert_allclose(stored.affine, AFFINE, atol=1e-5)
    assert stored.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(convert(tmp_path / "a.nii.gz", None, image).array, TRUTH)


def test_a_failed_write_leaves_the_old_label_and_nothing_else(image: Path, tmp_path: Path) -> None:
    converted = convert(save(TRUTH, tmp_path / "label.nii.gz"), None, image)
    folder = tmp_path / "final"
    folder.mkdir()
    (folder / "kept.nii.gz").mkdir()  # a folder cannot be replaced by a file, not even by root
    with pytest.raises(LabelError, match="cannot be stored"):
        write_label(converted, folder / "kept.nii.gz")
    assert [entry.name for entry in folder.iterdir()] == ["kept.nii.gz"]
    with pytest.raises(LabelError, match="cannot be stored"):
        write_label(converted, tmp_path / "no" / "folder.nii.gz")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which is always out of space")
def test_a_full_disk_is_a_sentence(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converted = convert(save(TRUTH, tmp_path / "label.nii.gz"), None, image)
    monkeypatch.setattr("svgd_label.labels.write.uuid.uuid4", lambda: type("Fixed", (), {"hex": "full"})())
    (tmp_path / ".l.nii.gz.full.tmp").symlink_to("/dev/full")
    with pytest.raises(LabelError, match="No space left"):
        write_label(converted, tmp_path / "l.nii.gz")
    assert not (tmp_path / "l.nii.gz").exists()
