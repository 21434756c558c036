"""Routes that stand in front of MONAI Label's own: they name the client, check a training's parameters, use threads.

MONAI Label's endpoints are ``async`` around blocking calls, so that one inference stops everybody. The same functions
registered as plain ones run in FastAPI's thread pool.
"""

import contextlib
import inspect
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

from fastapi import APIRouter, BackgroundTasks, Body, Depends, FastAPI, File, Form, HTTPException, Request, UploadFile
from fastapi.responses import FileResponse, Response
from fastapi.routing import APIRoute
from monailabel.config import settings
from monailabel.endpoints import batch_infer, datastore, infer, info, logs, ohif, scoring, session, train
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from svgd_label.images import ImageError
from svgd_label.pool import FINAL
from svgd_label.pool.files import split_extension
from svgd_label.server import guards, slicer
from svgd_label.server.answers import plain_image, plain_tag, storing, unknown_image
from svgd_label.server.auto_train import is_running
from svgd_label.server.body_limit import BodyLimit
from svgd_label.server.own_origin import OwnOrigin
from svgd_label.server.requests import RequestError, TrainRequest
from svgd_label.server.training_lock import BUSY, is_trained_elsewhere

logger = logging.getLogger(__name__)

TRAINER = "svgd"
SLICERS_DEFAULT = "user-xyz"
CLIENT_COOKIE = "svgd_client"
"""By which a browser with OHIF in it is told from others; its panel names no client."""
_NEVER_AWAITING = (info, datastore, train, scoring, batch_infer, session, logs, ohif)
# There are no slides to be cut into tiles, and committees come from training. A folder has no DICOM server behind it;
# with one, a proxy of ours stands before this.
_NOT_OFFERED = ("/infer/wsi/{_}", "/infer/wsi_v2/{_}", "/proxy/{_:path}", "/model/{_}", "/model/info/{_}")

router = APIRouter()
_user = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
_annotator = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))
_admin = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))
# Any, because FastAPI cannot send back what it finds wrong with NaN.
Parameters = Annotated[Any, Body()]


@router.post("/infer/{model}")
def run_inference(
    request: Request,
    background_tasks: BackgroundTasks,
    model: str,
    image: str = "",
    session_id: str = "",
    params: Annotated[str, Form()] = "{}",
    file: Annotated[UploadFile | None, File()] = None,
    output: infer.ResultType | None = None,
    user: User = _user,
) -> Any:
    """Runs a model on an image of the study, of a session, or of the request; MONAI Label would take any path."""
    guards.known("model", model, app_instance()._infers)
    given = guards.client_parameters(guards.json_object(params))
    given["client_id"] = _client(request, given, user)
    guards.tag_of_proposal(given)
    if output is infer.ResultType.dicom_seg:
        raise HTTPException(400, "a DICOM SEG is made of saved labels only: ask for image, json or all")
    if file is not None:
        guards.upload(file)
        session_id = ""  # MONAI Label would take the session's image
    elif session_id:
        session_id = guards.session_name(session_id)
        sessions = app_instance().sessions()
        if sessions is None or sessions.get_session(session_id) is None:
            raise HTTPException(404, "this session is not known, or has ended: send the image again")
        image = ""  # Slicer names its volume besides, which need not be an image of the study
    elif not image:
        raise HTTPException(400, "an image, a file or a session is needed")
    if image and file is None and not _is_in_study(image):
        raise HTTPException(404, f"there is no image {image[:200]!r} in this study")
    # Scribbles, which MONAI Label would take beside the image, are of no use to this model.
    with _tidied(background_tasks), contextlib.nullcontext(image) if file is None else _received(file) as image:
        return infer.run_inference(background_tasks, model, image, session_id, json.dumps(given), None, None, output)


@router.post("/activelearning/{strategy}")
def next_sample(strategy: str, request: Request, params: Parameters = None, user: User = _user) -> Any:
    """The next image that nobody else holds."""
    guards.known("strategy", strategy, app_instance()._strategies)
    params = guards.client_parameters(params)
    params["client_id"] = _client(request, params, user)
    app = app_instance()
    # MONAI Label's own function gathers the app's whole info before, and rewrites the image's after: the pool knows.
    with storing():
        proposed = app.next_sample({**params, "strategy": strategy})
    if not proposed:
        return {}
    logger.info("next sample for %r: %s", params["client_id"], proposed)
    info = app.datastore().get_image_info(proposed["id"])
    if "path" not in info:
        app.datastore().studies.check([proposed["id"]], [])
        raise HTTPException(409, f"The image {proposed['id']} has just gone from the studies: ask for the next one.")
    with contextlib.suppress(OSError):  # the file has just gone, which its download will say
        info |= slicer.described(proposed["id"], Path(info["path"]))
    return {**proposed, **info, "id": proposed["id"]}


@router.post("/svgd/hold")
def hold(image: str, request: Request, params: Parameters = None, user: User = _annotator) -> dict[str, Any]:
    """Takes or renews the client's lease of an image that nobody else holds; says who does, and of image and label."""
    app, client = app_instance(), _client(request, guards.client_parameters(params), user)
    with storing():
        app.pool.touch(plain_image(image), client)
        state = app.pool.overview.image_state(image)
    if not state:
        raise unknown_image(image)
    holder = state["leased_by"]
    version = app.datastore().saved_label(image, FINAL)["version"]
    return {
        "held_by": None if holder == client else holder,
        **{key: state[key] for key in ("labelled", "flagged", "unusable")},
        "version": version,
    }


@router.post("/svgd/flag")
def flag(image: str, request: Request, params: Parameters = None, user: User = _annotator) -> dict[str, Any]:
    """Takes an image out as unusable, with a reason as in {"reason": "motion"}; without one, puts it back."""
    app = app_instance()
    reason = guards.client_parameters(params).get("reason") or ""
    if not isinstance(reason, str):
        raise HTTPException(400, 'reason must be a text, as in {"reason": "motion"}')
    reason = reason.strip()[:200]
    try:
        with storing():
            app.pool.flag(plain_image(image), reason or None)
    except KeyError:
        raise unknown_image(image) from None
    logger.info("%r: the flag of %s is %r", _client(request, {}, user), image, reason or None)
    app.on_flag(image)
    state: dict[str, Any] = app.pool.overview.image_state(image)
    return state


@router.put("/datastore/label")
def save_label(
    request: Request,
    image: str,
    label: Annotated[UploadFile, File()],
    params: Annotated[str, Form()] = "{}",
    tag: str = FINAL,
    user: User = _annotator,
) -> dict[str, Any]:
    """Saves a label under the name of who sends it; says which of its segments were left out, and what it lacks."""
    guards.upload(label)
    tag = plain_tag(tag or FINAL)
    given = guards.json_object(params)
    given |= {"client_id": _client(request, given, user), "user": user.username}
    app = app_instance()
    store = app.datastore()
    with _received(label) as file:
        saved = store.save_label(image, file, tag, given)
    app.on_save_label(image, saved)
    return {"image": image, "label": saved, **store.saved_label(image, tag)}


@router.put("/datastore/", include_in_schema=False)
@router.put("/datastore/image")
def add_image(
    file: Annotated[UploadFile, File()],
    image: str = "",
    params: Annotated[str, Form()] = "{}",
    user: User = _annotator,
) -> Any:
    """Adds an image; without an id, ``case.1.nii.gz`` is ``case.1``, where MONAI Label would call it ``case``."""
    guards.upload(file)
    given = {**guards.json_object(params), "user": user.username}
    image = plain_image(image or split_extension(Path(file.filename or "").name)[0])
    with _received(file) as path:
        return {"image": app_instance().datastore().add_image(image, path, given)}


@router.get("/datastore/image", dependencies=[_user])
def download_image(image: str) -> Any:
    """An image's file; of one that is a folder of DICOM files a NIfTI file, since a viewer without DICOM wants one."""
    path = app_instance().datastore().get_image_uri(plain_image(image))
    if not path:
        raise unknown_image(image)
    if not Path(path).is_dir():
        return datastore.download_image(image)
    try:
        content = slicer.as_nifti(Path(path))
    except ImageError as error:
        raise HTTPException(503 if error.passing else 422, str(error)) from error
    return Response(content, media_type="application/gzip")


@router.get("/datastore/dataset", dependencies=[_annotator])
def download_dataset(background_tasks: BackgroundTasks, limit_cases: int | None = None) -> Any:
    """What is labelled as a ZIP file, which goes once it is sent."""
    answer = datastore.download_dataset(limit_cases)
    background_tasks.add_task(Path(answer.path).unlink, missing_ok=True)
    return answer


@router.post("/train/{model}", dependencies=[_admin])
def run_training(model: str, params: Parameters = None, run_sync: bool = False, enqueue: bool = False) -> Any:
    """Starts a training, its parameters checked before a process is made for it."""
    given = guards.client_parameters(params)
    _check(model, given, run_sync)
    return _run(model, given, run_sync, enqueue)


@router.post("/train/", dependencies=[_admin])
def run_trainings(params: Parameters = None, run_sync: bool = False) -> Any:
    """What the OHIF panel calls: the parameters of each trainer under its name."""
    given = guards.client_parameters(guards.client_parameters(params).get(TRAINER))
    _check(TRAINER, given, run_sync)
    # MONAI Label's own function would pass the whole body on besides, the trainer's name as one of its parameters.
    return {TRAINER: {"result": _run(TRAINER, given, run_sync, enqueue=False), "detail": None}}


def _client(request: Request, params: dict[str, Any], user: User) -> str:
    """Who asks: told by login, else by the ``client_id`` that is sent, else by the browser's cookie or the address."""
    login = user.username if settings.MONAI_LABEL_AUTH_ENABLE else None
    address = request.client.host if request.client else ""
    given = params.get("client_id")
    # What every 3D Slicer sends in whose settings nobody has entered a name: they would all be one annotator.
    named = None if given == SLICERS_DEFAULT else given
    client = str(login or named or request.cookies.get(CLIENT_COOKIE) or address)
    return "".join(filter(str.isprintable, client))[:200] or "anonymous"  # a line break would forge a line of the log


def _is_in_study(image: str) -> bool:
    """Whether this is the id of an image, or the path of its file or folder."""
    store = app_instance().datastore()
    if os.sep not in image:
        return bool(store.get_image_uri(image))
    try:
        path = Path(image)
        known = store.get_image_uri(split_extension(path.name)[0])
        return bool(known) and Path(known).resolve() == path.resolve()
    except (OSError, ValueError):  # a loop of links, a zero byte
        return False


def _run(model: str, params: dict[str, Any], run_sync: bool, enqueue: bool) -> Any:
    try:
        return train.run_model(model, params, run_sync, enqueue)
    except HTTPException as error:
        if error.status_code != 429:
            raise
        raise HTTPException(
            429, "a training is running already: wait for its end, or stop it and start another with the newest labels"
        ) from error


def _check(model: str, params: dict[str, Any], run_sync: bool) -> None:
    guards.known("trainer", model, {TRAINER: None})
    if run_sync:
        raise HTTPException(400, "run_sync is not offered: a training runs beside the server, which goes on answering")
    try:
        TrainRequest.read(params)
    except RequestError as error:
        raise HTTPException(400, str(error)) from error
    # Asked last: looking takes the lock for a moment, in which one's own training must not start.
    if not is_running("train") and is_trained_elsewhere(app_instance().pool.database.folder):
        raise HTTPException(409, f"{BUSY}: wait for its end, then try again")
    if not app_instance().pool.training_list():
        raise HTTPException(409, "there is no labelled image to train on: save a label first")


def install(app: FastAPI, *others: APIRouter) -> None:
    """Puts these routes in front of MONAI Label's, ``others`` first, and takes the hanging ``/reload`` away.

    All of them get a limit on the length of bodies, and take changes from pages of this server only, unless all
    origins are let in.
    """
    before = len(app.router.routes)
    for other in others:
        app.include_router(other)
    for path in _NOT_OFFERED:
        app.add_api_route(path, _not_offered, methods=["GET", "POST", "PUT", "DELETE"], include_in_schema=False)
    app.include_router(router)
    app.include_router(_in_threads())
    routes = app.router.routes
    ours = routes[before:]
    routes[:] = [*ours, *(route for route in routes[:before] if getattr(route, "path", None) != "/reload")]
    # An app that has begun its lifespan takes no more middleware; its router lies within what it has.
    app.router.middleware_stack = BodyLimit(app.router.middleware_stack)
    if origins := [str(origin).rstrip("/") for origin in settings.MONAI_LABEL_CORS_ORIGINS]:
        app.router.middleware_stack = OwnOrigin(app.router.middleware_stack, origins)


def _not_offered() -> None:
    raise HTTPException(404, "this server does not offer that")


@contextlib.contextmanager
def _received(upload: UploadFile) -> Iterator[str]:
    """An upload as a file with its extension, gone at the end; MONAI Label leaves half of it where the disk is full."""
    extension = "".join(Path(upload.filename or "a.nii.gz").suffixes)
    with storing(), tempfile.NamedTemporaryFile(suffix=extension) as file:
        shutil.copyfileobj(upload.file, file)
        file.flush()
        yield file.name


@contextlib.contextmanager
def _tidied(background_tasks: BackgroundTasks) -> Iterator[None]:
    """Removes the temporary files of a request that fails: FastAPI would do so after good answers only."""
    try:
        with storing():
            yield
    except BaseException:
        for task in background_tasks.tasks:
            task.func(*task.args, **task.kwargs)
        raise


def _in_threads() -> APIRouter:
    """All of MONAI Label's other endpoints that block, each as a plain function."""
    threaded = APIRouter(include_in_schema=False)  # the stock ones describe themselves
    for module in _NEVER_AWAITING:
        for route in module.router.routes:
            if isinstance(route, APIRoute):
                threaded.add_api_route(route.path, _plain(route.endpoint), methods=sorted(route.methods or ()))
    return threaded


def _result(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine that awaits nothing returns."""
    try:
        coroutine.send(None)
    except StopIteration as finished:
        return finished.value
    raise RuntimeError(f"{coroutine} awaits something")


def _plain(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """An ``async`` function that awaits nothing, as one that is not ``async`` and meets checked arguments only."""

    def run(**arguments: Any) -> Any:
        coroutine = endpoint(**guards.checked(arguments))
        background_tasks = arguments.get("background_tasks")
        with contextlib.nullcontext() if background_tasks is None else _tidied(background_tasks):
            answer = _result(coroutine)
        if isinstance(answer, FileResponse) and not Path(answer.path).is_file():
            raise HTTPException(404, "there is no such file")
        return answer

    # Not functools.wraps: FastAPI would look through it and find the async function.
    signature = inspect.signature(endpoint, eval_str=True)
    parameters = [
        # See Parameters. A form field, which is a str, stays one.
        parameter.replace(annotation=Any, default=Body(None)) if dict in get_args(parameter.annotation) else parameter
        for parameter in signature.parameters.values()
    ]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__name__ = endpoint.__name__
    return run
