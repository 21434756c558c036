"""Where uploads lie until they are stored: on the disk that the labels go to, not on /tmp, which others fill."""

import contextlib
import os
import tempfile
import time
from pathlib import Path

from svgd_label.pool.files import make_folder, remove

_KEPT_SECONDS = 3600.0


def keep_temporary_files_in(folder: Path) -> None:
    """Makes a folder that of this process's temporary files, unless TMPDIR names another.

    What killed servers left there an hour ago or longer is removed. Not by way of the environment: the training
    process's sockets lie with its temporary files, and their paths must be short.
    """
    if os.environ.get("TMPDIR"):
        return
    make_folder(folder)
    for left in folder.iterdir():
        with contextlib.suppress(OSError):  # another server over this state folder removes them too
            if left.lstat().st_mtime < time.time() - _KEPT_SECONDS:
                remove(left)
    tempfile.tempdir = str(folder)
