"""Files that are whole or not there: copies and renames that a kill or a power cut cannot leave half done."""

import contextlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

EXTENSIONS = (".nii.gz", ".nii", ".nrrd")
INCOMING = ".incoming-"
PREVIOUS = ".previous-"
_LEFTOVER_SECONDS = 3600.0
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


def split_extension(name: str) -> tuple[str, str]:
    """``a.nii.gz`` -> ``("a", ".nii.gz")``; the extension is empty where it is none of ours. Case counts."""
    for extension in EXTENSIONS:
        if name.endswith(extension):
            return name[: -len(extension)], extension
    return name, ""


def is_plain_id(name: str) -> bool:
    """Whether a name can be an image's id: one visible name in a folder, which the file system and SQLite can hold."""
    return (
        0 < len(name.encode(errors="surrogatepass")) <= 200
        and not name.startswith(".")
        and not any(character in "/\\\0" or 0xD800 <= ord(character) <= 0xDFFF for character in name)
    )


def is_plain_tag(name: str) -> bool:
    """Whether a name can be a tag: letters, digits, ``_ . -``, not hidden."""
    return _TAG.fullmatch(name) is not None


def fingerprint(path: Path) -> str:
    """ "size:mtime_ns" of a file or folder: it changes when the content does."""
    return fingerprint_of(path.stat())


def fingerprint_of(status: os.stat_result) -> str:
    """``fingerprint`` from a status that is at hand."""
    return f"{status.st_size}:{status.st_mtime_ns}"


def incoming(folder: Path, extension: str) -> Path:
    """Name for a file that is being written into a folder; hidden, so that nobody takes it for finished."""
    return folder / f"{INCOMING}{uuid.uuid4().hex}{extension}"


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Makes a folder, with its parents, durably."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def copy_durably(source: Path, target: Path) -> None:
    """Copies a file so that ``target`` is the old one or all of the new one; OSError leaves it as it was."""
    with arriving(source, target.parent) as copy:
        place(copy, target)


def place(copy: Path, target: Path) -> None:
    """Renames what has arrived, durably."""
    copy.replace(target)
    sync_folder(target.parent)


@contextlib.contextmanager
def arriving(source: Path, folder: Path) -> Iterator[Path]:
    """A durable copy under a hidden name in a folder, to be renamed; one that is still there at the end is removed."""
    temporary = incoming(folder, "")
    try:
        with source.open("rb") as reader, temporary.open("wb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
            writer.flush()
            os.fsync(writer.fileno())
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def second_name(file: Path, other: Path) -> None:
    """A hard link, or a copy where there can be none."""
    try:
        os.link(file, other)
    except OSError:
        copy_durably(file, other)


def remove(path: Path) -> None:
    """Removes a file, a folder with all that is in it, or a link, which leaves what it leads to."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed process left unfinished in a folder an hour ago or longer."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            # A label is itself written by a temporary file, hidden once more.
            if entry.name.startswith((INCOMING, f".{INCOMING}", PREVIOUS)):
                with contextlib.suppress(OSError):
                    # Not its mtime: the hard link that a save makes bears the old label's.
                    if entry.stat(follow_symlinks=False).st_ctime < time.time() - _LEFTOVER_SECONDS:
                        remove(Path(entry.path))
