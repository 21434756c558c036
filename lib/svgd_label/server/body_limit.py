"""A limit on what a request may bring besides files: it would be parsed in memory while everybody waits."""

from collections.abc import Callable
from typing import Any

from fastapi import HTTPException
from fastapi.datastructures import Headers

LIMIT = 1 << 20  # bytes; as much as one text field of a form may have
# All that these take is forms, whose files go to disk as they come; what is passed on to a DICOM server is not kept.
_UPLOADS = ("/datastore/", "/infer/", "/session/", "/proxy/dicom/")


class BodyLimit:
    """ASGI app around another that answers 413 where a body is longer than ``LIMIT`` and brings no files."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] != "http" or _brings_files(scope):
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


def _brings_files(scope: Any) -> bool:
    kind = Headers(scope=scope).get("content-type", "")
    return kind.lower().startswith("multipart/") and str(scope["path"]).startswith(_UPLOADS)
