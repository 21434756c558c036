"""A limit on what a request may bring: besides files, which is parsed in memory; and with them, which need room."""

import shutil
import tempfile
from collections.abc import Callable
from typing import Any

from fastapi import HTTPException
from fastapi.datastructures import Headers

LIMIT = 1 << 20  # bytes; as much as one text field of a form may have
# All that these take is forms, whose files go to disk as they come; what is passed on to a DICOM server is not kept.
_UPLOADS = ("/datastore/", "/infer/", "/session/", "/proxy/dicom/")


class BodyLimit:
    """ASGI app around another: 413 for a body longer than ``LIMIT`` without files, 507 for files that do not fit."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] != "http" or _brings_files(scope):
            if scope["type"] == "http" and not _has_room(scope):
                while (await receive()).get("more_body"):  # as below
                    pass
                raise HTTPException(
                    507, "Nothing was stored: the server's disk has no room for a file of this length. Make room there."
                )
            await self._app(scope, receive, send)
            return
        taken = 0

        async def counted() -> Any:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken <= LIMIT:
                return message
            while message.get("more_body"):  # a client that is cut off while it sends would not see the answer
                message = await receive()
            raise HTTPException(
                413, f"This request's body is longer than {LIMIT} bytes: send less, and files as multipart/form-data."
            )

        await self._app(scope, counted, send)


def _has_room(scope: Any) -> bool:
    """Whether an upload of the announced length fits twice: as it comes, and as a file; not where it is passed on."""
    length = Headers(scope=scope).get("content-length", "")
    if not length.isdecimal() or str(scope["path"]).startswith("/proxy/"):
        return True
    return 2 * int(length) <= shutil.disk_usage(tempfile.gettempdir()).free


def _brings_files(scope: Any) -> bool:
    kind = Headers(scope=scope).get("content-type", "")
    return kind.lower().startswith("multipart/") and str(scope["path"]).startswith(_UPLOADS)
