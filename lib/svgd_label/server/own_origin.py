"""Changes are taken from this server's own pages and from those that were let in: CORS alone hides answers only."""

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException
from fastapi.datastructures import Headers

_READING = ("GET", "HEAD", "OPTIONS")


class OwnOrigin:
    """ASGI app around another that answers 403 where a web page of another origin asks for a change.

    A browser sends such a request with the credentials it knows, and asks nobody before where it looks like a form.
    Programs, as 3D Slicer, name no origin.

    Args:
        origins: whose pages may, besides those of the host that is asked.
    """

    def __init__(self, app: Callable[..., Any], origins: Sequence[str]) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Any, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] == "http" and scope["method"] not in _READING:
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            if origin is not None and origin not in self._origins and not _is_of(origin, headers.get("host", "")):
                raise HTTPException(
                    403,
                    f"A page of {origin[:100]} may not change anything here. Let its origin in with "
                    "MONAI_LABEL_CORS_ORIGINS, or let the proxy pass the header Host on.",
                )
        await self._app(scope, receive, send)


def _is_of(origin: str, host: str) -> bool:
    """Whether a page comes from where it asks. A proxy may leave the port out of the header Host."""
    try:
        page, asked = urlsplit(origin), urlsplit(f"//{host}")
        port = page.port or {"http": 80, "https": 443}.get(page.scheme)
        return page.hostname is not None and page.hostname == asked.hostname and asked.port in (None, port)
    except ValueError:
        return False
