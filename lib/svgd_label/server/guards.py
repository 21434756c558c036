"""What is wrong with a request, said before any of MONAI Label's own code meets it."""

import json
import re
import shutil
import tempfile
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from fastapi import HTTPException, UploadFile
from monailabel.interfaces.utils.app import app_instance

from svgd_label.pool import FINAL
from svgd_label.server.answers import dictionary, plain_tag

LONGEST_NAME = 200  # bytes
MOST_LINES = 100_000
_CHECKSUM = re.compile(r"((SHA256|SHA512|MD5):)?[0-9A-Fa-f]{1,128}")
# MONAI Label merges a client's parameters over what the address has said, and takes any path for an image.
_OF_THE_ADDRESS = ("image", "images", "model", "method", "strategy", "session", "session_id", "label", "bundle_path")


def json_object(text: str) -> dict[str, Any]:
    """A form field as the JSON object that it should be, or 400."""
    try:
        return dictionary(json.loads(text or "{}"))
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"The parameters are not JSON: {str(error)[:200]}.") from error


def client_parameters(params: Any) -> dict[str, Any]:
    """Parameters as a client may send them, without what stands in the address; None stands for none. Or 400."""
    given = dictionary({} if params is None else params)
    return {key: value for key, value in given.items() if key not in _OF_THE_ADDRESS}


def known(what: str, name: Any, names: Mapping[str, Any]) -> None:
    """404 with the names there are."""
    if name not in names:
        raise HTTPException(404, f"there is no {what} {str(name)[:100]!r}; known are {', '.join(names)}")


def tag_of_proposal(params: dict[str, Any]) -> None:
    """404 for a tag that names no folder, 400 for the one of annotators' labels: a proposal never takes their place."""
    if params.get("label_tag") and plain_tag(params["label_tag"]) == FINAL:
        raise HTTPException(400, "What a model proposes is no label of an annotator: take another label_tag.")


def session_name(session_id: str) -> str:
    """The id of a session, which names a folder, or 404."""
    try:
        return str(uuid.UUID(session_id))
    except ValueError as error:
        raise HTTPException(404, f"Session {session_id[:100]!r} is not known.") from error


def upload(file: UploadFile) -> None:
    """400 for a file whose name cannot be one, since its name or extension is used on disk."""
    name = PurePosixPath((file.filename or "a").replace("\\", "/")).name
    if not name.isprintable() or len(name.encode(errors="replace")) > LONGEST_NAME or name in ("", "..", "meta.info"):
        raise HTTPException(400, f"{str(file.filename)[:100]!r} cannot be the name of a file.")


def archive(file: UploadFile) -> None:
    """400 for an archive that is no ZIP file, which others can lead out of their folder, or would fill the disk."""
    if not (file.filename or "").lower().endswith(".zip") or not zipfile.is_zipfile(file.file):
        raise HTTPException(400, "Only ZIP archives are unpacked.")
    with zipfile.ZipFile(file.file) as content:
        size = sum(member.file_size for member in content.infolist())
    file.file.seek(0)
    if size > shutil.disk_usage(tempfile.gettempdir()).free // 2:
        raise HTTPException(400, f"The archive would unpack to {size} bytes, for which there is no room.")


def checked(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of one of MONAI Label's endpoints, or an answer that says what is wrong with them."""
    app = app_instance()
    found = dict(arguments)
    for name, value in arguments.items():
        if name in ("params", "info") and isinstance(value, str):
            json_object(value)
        elif name == "params":
            found[name] = client_parameters(value)
            tag_of_proposal(found[name])
        elif name == "model":
            known("model", value, app._infers)
        elif name == "method":
            known("scoring method", value, app._scoring_methods)
        elif name == "session_id":
            found[name] = session_name(value)
        elif name == "check_sum" and value and not _CHECKSUM.fullmatch(value):
            raise HTTPException(400, "check_sum is not SHA256:, SHA512: or MD5: and hexadecimal digits.")
        elif name == "lines" and value is not None:
            found[name] = min(value, MOST_LINES)
        for file in value if isinstance(value, list) else [value]:
            if isinstance(file, UploadFile) or hasattr(file, "filename"):
                upload(file)
                if arguments.get("uncompress"):
                    archive(file)
    return found
