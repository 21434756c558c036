"""Routes of the page: its files, which hold no data and are open to all, and the data, for those who may use them."""

import io
import logging
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, HTTPException, Query, Response
from fastapi.responses import FileResponse
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from numpy.typing import NDArray
from PIL import Image

from svgd_label.pool import Column, Pool, Status
from svgd_label.scoring import mi_shape
from svgd_label.server.answers import plain_image
from svgd_label.server.auto_train import AutoTrain
from svgd_label.server.page import state
from svgd_label.server.trainer import SVGDTrainer
from svgd_label.tasks import Task

_FILES = {"": "page.html", **{file: file for file in ("page.css", "page.js", "curve.js", "text.js")}}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-cache",  # a newer version of the package brings newer files
}
_NOT_KEPT = {"Cache-Control": "no-store"}
_user = RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER)


def page_routes(pool: Pool, task: Task, trainer: SVGDTrainer, auto_train: AutoTrain, *, ohif: bool) -> APIRouter:
    """The page over one study; ``ohif`` says that the images can be opened in OHIF."""
    logging.getLogger("uvicorn.access").addFilter(_is_worth_a_line)
    router = APIRouter(include_in_schema=False)

    for address, file in _FILES.items():
        router.add_api_route(f"/svgd/{address}", _serving(Path(__file__).with_name(file)))

    @router.get("/svgd/state")
    def show(
        response: Response,
        sort: Column = "rank",
        descending: bool = False,
        status: Status | None = None,
        search: Annotated[str, Query(max_length=200)] = "",
        page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
        user: User = Depends(_user),  # noqa: B008
    ) -> dict[str, Any]:
        response.headers.update(_NOT_KEPT)
        overview = pool.overview
        table = state.table(overview, sort=sort, descending=descending, status=status, search=search.strip(), page=page)
        return {
            "task": {"name": task.name, "labels": task.labels},
            "user": user.username if settings.MONAI_LABEL_AUTH_ENABLE else None,
            "ohif": ohif,
            "counts": overview.counts() if search else table["counts"],
            "next": state.next_image(overview),
            "training": state.training(trainer, auto_train),
            "curve": state.curve(overview),
            "table": table,
            "history": state.history(overview),
        }

    @router.get("/svgd/thumbnail", dependencies=[Depends(_user)])
    def thumbnail(image: str) -> Response:
        codes = pool.codes([plain_image(image)]).get(image)
        if codes is None:
            raise HTTPException(404, "there is no small picture of this image yet")
        return Response(_picture(task, codes), media_type="image/png", headers=_NOT_KEPT)

    return router


def _serving(file: Path) -> Any:
    def serve() -> FileResponse:
        return FileResponse(file, headers=_HEADERS)

    return serve


def _picture(task: Task, codes: NDArray[np.uint8]) -> bytes:
    """A PNG of the middle axial slice, the patient's right on the left side and the front above.

    It is made of the codes that are kept for mutual information: no image is read for it.
    """
    grid = codes.reshape(mi_shape(task))  # right, front, top
    middle = grid[::-1, ::-1, grid.shape[2] // 2].T
    grey = (middle.astype(np.uint16) * 255 // (task.mi_bins - 1)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    return file.getvalue()


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Whether a request goes into the access log: every open page asks for the state all the time, and is answered."""
    asked = record.args if isinstance(record.args, tuple) else ()
    return not (len(asked) == 5 and str(asked[2]).startswith("/svgd/state") and asked[4] == 200)
