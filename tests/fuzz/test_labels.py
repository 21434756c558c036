"""An uploaded label may be broken in any way: it becomes the task's values on the image's grid, or one sentence."""

import gzip
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.fuzz.mutations import SHAPE, bombs, nifti, nifti_headers, nrrd_headers, random_damage

from svgd_label.labels import LabelError, convert_label

LABELS = ("anterior", "posterior")


def label() -> bytes:
    """A good label of the image that the mutations are made from."""
    return nifti(np.random.default_rng(1).integers(0, 3, SHAPE).astype(np.uint8))


def uploads(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each upload."""
    good, packed = label(), gzip.compress(label())
    head = good[:352]
    for name, data in nifti_headers():
        yield "a.nii", data[:352] + good[352:] if len(data) > 1000 and name.startswith("dim") else data
    for _, data in random_damage(good, 1, 150, head=len(head)):
        yield "a.nii", data
    for _, data in random_damage(packed, 2, 150, head=60):
        yield "a.nii.gz", data
    for _, data in nrrd_headers(folder):
        yield "a.nrrd", data
    for _, data in bombs():
        yield "a.nii.gz", data
    for name in ("a.nii", "a.nii.gz", "a.nrrd", "a.seg.nrrd", "a.bin", "a", "a.exe", ".nii", "a.NII"):
        for data in (good, packed, b"", b"\0" * 100, good[:352]):
            yield name, data


@pytest.mark.slow
def test_every_upload_is_a_label_or_a_sentence(tmp_path: Path) -> None:
    image = tmp_path / "image.nii"
    image.write_bytes(nifti())
    results: Counter[str] = Counter()
    sentences: list[str] = []
    for name, data in uploads(tmp_path):
        file = tmp_path / name
        file.write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = convert_label(file, None, image=image, labels=LABELS, aliases={})
        except LabelError as error:
            results["refused"] += 1
            sentences.append(str(error))
        else:
            results["works"] += 1
            assert found.array.shape == SHAPE and found.array.max() <= len(LABELS)
        file.unlink()
    assert results["refused"] > 300 and results["works"] > 50, results
    assert all("image.nii" in text and "\n" not in text and "Traceback" not in text for text in sentences)
