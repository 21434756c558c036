"""Writes a converted label: whole, always alike, or not at all."""

import contextlib
import gzip
import os
import uuid
from pathlib import Path

import nibabel

from svgd_label.labels.convert import ConvertedLabel
from svgd_label.labels.errors import LabelError


def write_label(converted: ConvertedLabel, path: Path) -> None:
    """Writes a label as compressed NIfTI so that ``path`` holds either the old file or the whole new one, also after
    a power cut. Equal labels give equal bytes.

    Raises:
        LabelError: the disk is full, read-only or gone; ``path`` is as it was.
    """
    label = nibabel.Nifti1Image(converted.array, converted.affine)
    label.header.set_xyzt_units("mm")
    label.set_qform(converted.affine, code="scanner")
    label.set_sform(converted.affine, code="scanner")
    data = gzip.compress(label.to_bytes(), compresslevel=6, mtime=0)
    # Not named like a label: whoever lists the folder must not take it for one.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise LabelError(
            f"{path}: the label cannot be stored ({error.strerror}); make room or allow writing there, then save again"
        ) from error
