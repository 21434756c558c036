"""Routes that stand in front of MONAI Label's own: they name the client, check a training's parameters, use threads.

MONAI Label's endpoints are ``async`` around blocking calls, so that one inference stops everybody. The same functions
registered as plain ones run in FastAPI's thread pool.
"""

import inspect
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Body, Depends, FastAPI, File, Form, HTTPException, Request, UploadFile
from fastapi.routing import APIRoute
from monailabel.config import settings
from monailabel.endpoints import activelearning, batch_infer, datastore, infer, info, model, scoring, session, train
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from svgd_label.server.answers import plain_image, unknown_image
from svgd_label.server.requests import RequestError, TrainRequest

TRAINER = "svgd"
_NEVER_AWAITING = (info, datastore, train, scoring, batch_infer, session, model)

router = APIRouter()
_user = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
_admin = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))
Parameters = Annotated[dict[str, Any] | None, Body()]


@router.post("/infer/{model}")
def run_inference(
    request: Request,
    background_tasks: BackgroundTasks,
    model: str,
    image: str = "",
    session_id: str = "",
    params: Annotated[str, Form()] = "{}",
    file: Annotated[UploadFile | None, File()] = None,
    label: Annotated[UploadFile | None, File()] = None,
    output: infer.ResultType | None = None,
    user: User = _user,
) -> Any:
    """Runs a model on an image of the study, of a session, or of the request; MONAI Label would take any path."""
    _check_known("model", model, app_instance()._infers)
    try:
        given = json.loads(params or "{}")
    except ValueError as error:
        raise HTTPException(400, f"params is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise HTTPException(400, "params must be a JSON object, as in {}")
    given.pop("image", None)  # it would take the place of the one that is checked
    given["client_id"] = _client(request, given, user)
    if image and file is None and not _is_in_study(image):
        raise HTTPException(404, f"there is no image {image!r} in this study")
    return infer.run_inference(background_tasks, model, image, session_id, json.dumps(given), file, label, output)


@router.post("/activelearning/{strategy}")
def next_sample(strategy: str, request: Request, params: Parameters = None, user: User = _user) -> Any:
    """The next image that nobody else holds."""
    _check_known("strategy", strategy, app_instance()._strategies)
    params = dict(params or {})
    params["client_id"] = _client(request, params, user)
    return activelearning.sample(strategy, params, user.username)


@router.post("/svgd/flag", dependencies=[_user])
def flag(image: str, reason: Annotated[str | None, Body(embed=True)] = None) -> dict[str, Any]:
    """Takes an image out as unusable, with a reason such as "motion"; without one, puts it back."""
    app = app_instance()
    try:
        app.pool.flag(plain_image(image), (reason or "").strip()[:200] or None)
    except KeyError:
        raise unknown_image(image) from None
    app.on_flag(image)
    state: dict[str, Any] = app.pool.image_state(image)
    return state


@router.post("/train/{model}", dependencies=[_admin])
def run_training(model: str, params: Parameters = None, run_sync: bool = False, enqueue: bool = False) -> Any:
    """Starts a training, its parameters checked before a process is made for it."""
    _check(model, params or {}, run_sync)
    return train.run_model(model, params, run_sync, enqueue)


@router.post("/train/", dependencies=[_admin])
def run_trainings(params: Parameters = None, run_sync: bool = False) -> Any:
    """What the OHIF panel calls: the parameters of each trainer under its name."""
    given = (params or {}).get(TRAINER) or {}
    _check(TRAINER, given, run_sync)
    # MONAI Label's own function would pass the whole body on besides, the trainer's name as one of its parameters.
    return {TRAINER: {"result": train.run_model(TRAINER, given, run_sync, enqueue=True), "detail": None}}


def _client(request: Request, params: dict[str, Any], user: User) -> str:
    """Who asks: told by login, else by the ``client_id`` that is sent, else by the address."""
    login = user.username if settings.MONAI_LABEL_AUTH_ENABLE else None
    address = request.client.host if request.client else None
    return str(login or params.get("client_id") or address or "anonymous")


def _is_in_study(image: str) -> bool:
    """Whether an id, or the path of a file or folder, belongs to the studies folder."""
    app = app_instance()
    if os.sep in image:
        return Path(image).resolve().is_relative_to(Path(app.studies).resolve())
    return bool(app.datastore().get_image_uri(image))


def _check_known(what: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise HTTPException(404, f"there is no {what} {name!r}; known are {', '.join(known)}")


def _check(model: str, params: Any, run_sync: bool) -> None:
    _check_known("trainer", model, [TRAINER])
    if not isinstance(params, dict):
        raise HTTPException(400, "the parameters of a training are a JSON object, as in {}")
    if run_sync:
        raise HTTPException(400, "run_sync is not offered: a training runs beside the server, which goes on answering")
    try:
        TrainRequest.read(params)
    except RequestError as error:
        raise HTTPException(400, str(error)) from error
    if not app_instance().pool.training_list():
        raise HTTPException(409, "there is no labelled image to train on: save a label first")


def install(app: FastAPI) -> None:
    """Puts these routes in front of MONAI Label's, and takes ``/reload`` away, which hangs the server for ever."""
    before = len(app.router.routes)
    app.include_router(router)
    app.include_router(_in_threads())
    routes = app.router.routes
    ours = routes[before:]
    routes[:] = [*ours, *(route for route in routes[:before] if getattr(route, "path", None) != "/reload")]


def _in_threads() -> APIRouter:
    """All of MONAI Label's other endpoints that block, each as a plain function."""
    threaded = APIRouter(include_in_schema=False)  # the stock ones describe themselves
    for module in _NEVER_AWAITING:
        for route in module.router.routes:
            if isinstance(route, APIRoute):
                threaded.add_api_route(route.path, _plain(route.endpoint), methods=sorted(route.methods or ()))
    return threaded


def _plain(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """An ``async`` function that awaits nothing, as one that is not ``async``."""

    def run(**arguments: Any) -> Any:
        coroutine = endpoint(**arguments)
        try:
            coroutine.send(None)
        except StopIteration as finished:
            return finished.value
        raise RuntimeError(f"{endpoint.__name__} awaits something")

    # Not functools.wraps: FastAPI would look through it and find the async function.
    run.__signature__ = inspect.signature(endpoint, eval_str=True)  # type: ignore[attr-defined]
    run.__name__ = endpoint.__name__
    return run
