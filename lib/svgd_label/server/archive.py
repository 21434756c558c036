"""A ZIP file with what is labelled, for whoever wants to take it away."""

import json
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
        OSError: the disk is full or cannot be written.
    """
    make_folder(folder)
    for old in folder.iterdir():
        if old.stat().st_mtime < time.time() - _KEPT_SECONDS:
            old.unlink(missing_ok=True)
    with (
        tempfile.NamedTemporaryFile(dir=folder, suffix=".zip", delete=False) as file,
        zipfile.ZipFile(file, mode="w") as archive,
    ):
        for case in cases:
            for kind, path in ((kind, Path(path)) for kind, path in case.items()):
                for part in sorted(path.iterdir()) if path.is_dir() else [path]:
                    if part.is_file() and part.resolve().is_relative_to(within):
                        archive.write(part, arcname=str(kind / part.relative_to(path.parent)))
        archive.writestr("metadata.json", json.dumps(metadata, default=str))
    return Path(file.name)
