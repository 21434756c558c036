"""``/proxy/dicom/...``, by which OHIF reaches the configured DICOMweb server and nothing else."""

import logging
import re
from collections.abc import AsyncIterator
from urllib.parse import quote

import httpx
from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import StreamingResponse
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC

from svgd_label.server.dicom.web import DicomServer

_TO_SERVER = ("accept", "accept-encoding", "content-type", "content-length", "if-none-match", "range")
_TO_CLIENT = (
    "content-type", "content-length", "content-encoding", "content-range", "accept-ranges", "cache-control", "etag",
    "last-modified",
)  # fmt: skip
_READABLE = re.compile(r"(studies|series|instances)(/[^/]+)*/?")
_STORABLE = re.compile(r"studies(/[0-9.]+)?/?")
# It writes each address with its query, in which viewers search for patients; so does the server's own log, below.
logging.getLogger("httpx").setLevel(logging.WARNING)

_SEARCHED = ("/proxy/", "/ohif")  # OHIF's work list puts its filters into the page's own address too
_TIMEOUT = httpx.Timeout(60.0, connect=5.0)


def proxy_routes(server: DicomServer) -> APIRouter:
    """Reading for everybody who may use MONAI Label, storing for its annotators; query strings are kept."""
    logging.getLogger("uvicorn.access").addFilter(_without_query)
    router = APIRouter(include_in_schema=False)
    # It follows no redirect, which could lead to another server, and waits without a thread.
    client = httpx.AsyncClient(auth=server.credentials, timeout=_TIMEOUT, limits=httpx.Limits(max_connections=64))
    prefixes = {
        "wado": settings.MONAI_LABEL_WADO_PREFIX,
        "qido": settings.MONAI_LABEL_QIDO_PREFIX,
        "stow": settings.MONAI_LABEL_STOW_PREFIX,
    }

    async def forward(
        request: Request, path: str, operation: str, body: AsyncIterator[bytes] | None
    ) -> StreamingResponse:
        segments = [quote(segment, safe="") for segment in path.split("/")]
        address = "/".join(filter(None, [server.url, prefixes[operation], *segments]))
        if request.url.query:
            address = f"{address}?{request.url.query}"
        headers = {name: request.headers[name] for name in _TO_SERVER if name in request.headers}
        asked = client.build_request(request.method, address, headers=headers, content=body)
        try:
            answer = await client.send(asked, stream=True)
        except httpx.HTTPError as error:
            raise HTTPException(502, "The DICOM server does not answer; it is asked again each time.") from error
        return StreamingResponse(
            _pieces(answer),
            answer.status_code,
            {name: answer.headers[name] for name in _TO_CLIENT if name in answer.headers},
        )

    @router.api_route(
        "/proxy/dicom/{path:path}",
        methods=["GET", "HEAD"],
        dependencies=[Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))],
    )
    async def read(request: Request, path: str) -> StreamingResponse:
        operation, path = _operation(path)
        if not _READABLE.fullmatch(path):
            raise HTTPException(404, "Only studies, series and instances are passed on.")
        # Some versions of OHIF ask for metadata where they search.
        operation = "wado" if path.rstrip("/").endswith("/metadata") else operation or "qido"
        return await forward(request, path, operation, None)

    @router.post("/proxy/dicom/{path:path}", dependencies=[Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))])
    async def store(request: Request, path: str) -> StreamingResponse:
        _, path = _operation(path)
        if not _STORABLE.fullmatch(path):
            raise HTTPException(404, "Instances are stored with POST to studies.")
        return await forward(request, path, "stow", request.stream())

    return router


def _operation(path: str) -> tuple[str, str]:
    """``wado/studies/1.2`` -> ``("wado", "studies/1.2")``; 404 for a path that could leave the server's root."""
    first, _, rest = path.partition("/")
    operation, path = (first, rest) if first in ("wado", "qido", "stow") else ("", path)
    if any(segment in (".", "..") or "\\" in segment for segment in path.split("/")):
        raise HTTPException(404, "Only studies, series and instances are passed on.")
    return operation, path


def _without_query(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple):
        record.args = tuple(
            argument.partition("?")[0] if isinstance(argument, str) and argument.startswith(_SEARCHED) else argument
            for argument in record.args
        )
    return True


async def _pieces(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in answer.aiter_raw():
            yield piece
    finally:
        await answer.aclose()
