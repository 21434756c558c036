"""A ZIP file with what is labelled, for whoever wants to take it away."""

import contextlib
import json
import shutil
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import HTTPException

from svgd_label.pool.files import make_folder

_KEPT_SECONDS = 3600.0


def write_archive(
    folder: Path, cases: Sequence[Mapping[str, str]], metadata: Mapping[str, Any], *, within: Path
) -> Path:
    """Writes a new archive and removes those of more than an hour ago.

    Args:
        folder: where archives lie.
        cases: as from ``datalist``: a kind of file, which names its folder in the archive, and a path.
        metadata: becomes ``metadata.json``.
        within: files outside this folder, which only a link can name, are left out.

    Raises:
        HTTPException: 507, the archive would take more than half of what is free, which labels need too.
        OSError: the disk cannot be written; nothing is left there.
    """
    make_folder(folder)
    for old in folder.iterdir():
        with contextlib.suppress(OSError):  # its download has just ended, which removes it too
            if old.stat().st_mtime < time.time() - _KEPT_SECONDS:
                old.unlink()
    parts = [
        (part, str(kind / part.relative_to(path.parent)))
        for case in cases
        for kind, path in ((kind, Path(path)) for kind, path in case.items())
        for part in (sorted(path.iterdir()) if path.is_dir() else [path])
        if part.is_file() and part.resolve().is_relative_to(within)
    ]
    needed, free = sum(part.stat().st_size for part, _ in parts), shutil.disk_usage(folder).free
    if needed > free // 2:
        raise HTTPException(
            507,
            f"The archive would take {needed >> 20} MB, and half of the {free >> 20} MB that are free on the "
            "server's disk is kept for labels: ask for fewer images with limit_cases, or make room there.",
        )
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".zip", delete=False) as file:
        try:
            with zipfile.ZipFile(file, mode="w") as archive:
                for part, name in parts:
                    archive.write(part, arcname=name)
                archive.writestr("metadata.json", json.dumps(metadata, default=str))
            file.flush()
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    return Path(file.name)
