"""Routes that stand in front of MONAI Label's own: they name the client, check a training's parameters, use threads.

MONAI Label's endpoints are ``async`` around blocking calls, so that one inference stops everybody. The same functions
registered as plain ones run in FastAPI's thread pool.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, FastAPI, HTTPException, Request
from monailabel.config import settings
from monailabel.endpoints import activelearning, infer, train
from monailabel.endpoints.user.auth import RBAC, User

from svgd_label.server.requests import RequestError, TrainRequest

TRAINER = "svgd"

router = APIRouter()
_user = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
_admin = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))
Parameters = Annotated[dict[str, Any] | None, Body()]

router.post("/infer/{model}", dependencies=[_user])(infer.run_inference)


@router.post("/activelearning/{strategy}")
def next_sample(strategy: str, request: Request, params: Parameters = None, user: User = _user) -> Any:
    """The next image. A client is told by login, else by the ``client_id`` it sends, else by its address."""
    params = dict(params or {})
    login = user.username if settings.MONAI_LABEL_AUTH_ENABLE else None
    address = request.client.host if request.client else None
    params["client_id"] = str(login or params.get("client_id") or address or "anonymous")
    return activelearning.sample(strategy, params, user.username)


@router.post("/train/{model}", dependencies=[_admin])
def run_training(model: str, params: Parameters = None, run_sync: bool = False, enqueue: bool = False) -> Any:
    """Starts a training, its parameters checked before a process is made for it."""
    _check(model, params or {})
    return train.run_model(model, params, run_sync, enqueue)


@router.post("/train/", dependencies=[_admin])
def run_trainings(params: Parameters = None, run_sync: bool = False) -> Any:
    """What the OHIF panel calls: the parameters of each trainer under its name."""
    _check(TRAINER, (params or {}).get(TRAINER) or {})
    return train.run({TRAINER: (params or {}).get(TRAINER) or {}}, run_sync)


def _check(model: str, params: dict[str, Any]) -> None:
    if model != TRAINER:
        raise HTTPException(404, f"there is no trainer {model!r}; the one here is {TRAINER!r}")
    try:
        TrainRequest.read(params)
    except RequestError as error:
        raise HTTPException(400, str(error)) from error


def install(app: FastAPI) -> None:
    """Puts these routes in front of MONAI Label's, and takes ``/reload`` away, which hangs the server for ever."""
    before = len(app.router.routes)
    app.include_router(router)
    routes = app.router.routes
    ours = routes[before:]
    routes[:] = [*ours, *(route for route in routes[:before] if getattr(route, "path", None) != "/reload")]
