"""What ``python main.py serve`` does: checks first, says what to open, then starts MONAI Label in this process."""

import errno
import importlib.util
import json
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import typer

from svgd_label.errors import UserError
from svgd_label.server.dicom.address import is_web, read_address

ROOT = Path(__file__).parents[3]
"""The checkout: the app and the sample data stand beside the package's source."""
PYTHON = (3, 11)
NEEDED_MB = 500
CORS = "MONAI_LABEL_CORS_ORIGINS"


class StartError(UserError):
    """Why the server cannot start, and what to do."""


@dataclass(frozen=True)
class Start:
    """A start that has passed all checks.

    Attributes:
        arguments: of MONAI Label's own command line.
        origins: addresses whose web pages may call the server; empty: all.
        welcome: what the user reads first.
        environment: settings of MONAI Label that are no arguments, because it prints those.
    """

    arguments: list[str]
    origins: list[str]
    welcome: str
    environment: dict[str, str] = field(default_factory=dict)


def serve(
    studies: str | None,
    task: str | None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    conf: Mapping[str, str] | None = None,
) -> None:
    """Serves a folder of images, or the series of a DICOMweb server, until Ctrl-C.

    Args:
        studies: a folder of images, or the address of a DICOMweb server; None: the sample study.
        task: a preset or the path of a YAML file; None: ``sample`` for the sample study, else ``hippocampus``.
        host: the address to listen on; the default is reached from this machine only.
        port: the port to listen on.
        conf: further settings of the app, as after MONAI Label's ``--conf``.

    Raises:
        StartError: one sentence, before anything has been started.
        svgd_label.server.conf.ConfError, svgd_label.tasks.TaskError: a setting or the task cannot be used.
    """
    start = prepare(studies, task, host=host, port=port, conf=conf or {})
    typer.echo(start.welcome)
    _run(start)


def prepare(studies: str | None, task: str | None, *, host: str, port: int, conf: Mapping[str, str]) -> Start:
    """All checks, the cheap ones first; copies the sample study where it is asked for.

    Raises:
        UserError: as :func:`serve`.
    """
    _check_installation()
    _check_port(host, port)
    environment = {}
    if studies is None:
        place = str(_sample_study(ROOT / "studies" / "sample"))
    elif is_web(studies):
        address = read_address(studies)
        place = address.url
        if address.username:
            environment["MONAI_LABEL_DICOMWEB_USERNAME"] = address.username
            environment["MONAI_LABEL_DICOMWEB_PASSWORD"] = address.password
    else:
        place = str(_check_folder(studies))
    task = task or conf.get("task") or ("sample" if studies is None else "hippocampus")
    chosen = {**conf, "task": task}
    _check_settings(chosen, place)
    arguments = ["start_server", "--app", str(ROOT / "apps" / "svgd"), "--studies", place]
    arguments += ["--host", host, "--port", str(port)]
    for key, value in chosen.items():
        arguments += ["--conf", key, value]
    return Start(arguments, _origins(port), _welcome(place, task, host, port), environment)


def _check_installation() -> None:
    if sys.version_info[:2] != PYTHON:
        wanted = ".".join(map(str, PYTHON))
        raise StartError(
            f"the server needs Python {wanted}, for which its packages are pinned; this is "
            f"{sys.version_info.major}.{sys.version_info.minor}: use 'make serve' or a Python {wanted} environment"
        )
    if importlib.util.find_spec("monailabel") is None:
        raise StartError("MONAI Label is not installed here; run 'pip install -r requirements.txt' or 'make serve'")
    app = ROOT / "apps" / "svgd"
    if not app.is_dir():
        raise StartError(f"{app}: the app is not there; install the package from its checkout with 'pip install -e .'")
    if not os.access(app, os.W_OK):
        raise StartError(f"{app}: MONAI Label keeps its logs in this folder, and it cannot be written to; allow it")


def _check_port(host: str, port: int) -> None:
    if not 0 < port < 65536:
        raise StartError(f"{port} is no port; take a number from 1 to 65535, as in PORT=8000")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise StartError(f"{host!r} is no address of this machine; take HOST=127.0.0.1, or HOST=0.0.0.0") from error
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that has just ended is no hindrance
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise StartError(
                    f"port {port} is taken by another program; end it or take another port: PORT={port + 1}"
                ) from error
            if error.errno == errno.EACCES:
                raise StartError(f"port {port} is kept for the system; take one from 1024 on: PORT=8000") from error
            raise StartError(f"cannot listen on {host} port {port}: {error.strerror}; take another HOST=") from error


def _check_folder(studies: str) -> Path:
    folder = Path(studies).expanduser().absolute()
    if not folder.exists():
        raise StartError(f"{folder}: there is no such folder; make it or correct STUDIES=")
    if not folder.is_dir():
        raise StartError(f"{folder}: not a folder; STUDIES= takes the folder that holds the images")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise StartError(f"{folder}: cannot be written to, so no label could be saved; allow it or take a copy")
    _check_space(folder)
    return folder


def _check_space(folder: Path) -> None:
    free = shutil.disk_usage(folder).free // 2**20
    if free < NEEDED_MB:
        raise StartError(f"{folder}: only {free} MB are free on its disk, {NEEDED_MB} MB are needed; make room there")


def _check_settings(conf: Mapping[str, str], studies: str) -> None:
    from svgd_label.server.conf import Conf  # brings torch: after the checks that take no time

    settings = Conf.read(dict(conf))
    settings.load_task()
    if is_web(studies):
        state = settings.state_folder(studies)
        _check_space(next(folder for folder in (state, *state.parents) if folder.exists()))


def _sample_study(folder: Path) -> Path:
    """The user's own copy of the sample study: made once, then left as it is, with all labels saved there."""
    if not folder.exists():
        source = ROOT / "sample-data"
        if not source.is_dir():
            raise StartError(f"{source}: the sample data are not there; make them: python main.py sample-data")
        temporary = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            _check_space(folder.parent)
            shutil.copytree(source, temporary)
            temporary.rename(folder)  # so that a copy that was cut off is never taken for the study
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise StartError(f"{folder}: the sample data cannot be copied there ({error}); make room there") from error
    return _check_folder(str(folder))


def _origins(port: int) -> list[str]:
    """As the setting says, which is none from elsewhere. MONAI Label takes an empty list for "everybody"."""
    setting = os.environ.get(CORS)
    if not setting:
        return [f"http://127.0.0.1:{port}", f"http://localhost:{port}"]
    try:
        origins = json.loads(setting)
    except json.JSONDecodeError:
        origins = None
    if not isinstance(origins, list) or not origins or not all(o == "*" or _is_origin(o) for o in origins):
        raise StartError(f'{CORS} is {setting!r}; write a list of addresses, as in ["http://viewer.example:3000"]')
    return [] if "*" in origins else [origin.rstrip("/") for origin in origins]


def _is_origin(origin: object) -> bool:
    try:
        return isinstance(origin, str) and is_web(origin) and bool(urlsplit(origin).hostname)
    except ValueError:
        return False


def _welcome(studies: str, task: str, host: str, port: int) -> str:
    is_open = host not in ("127.0.0.1", "localhost", "::1")
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    address = f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
    lines = [
        "",
        "SVGD Label is starting; that takes about half a minute. Ctrl-C ends it, labels are kept.",
        f"  Studies   {studies}",
        f"  Task      {task}",
        f"  Address   {address}",
        "",
        "What to open:",
        *([f"  OHIF        {address}/ohif/"] if is_web(studies) else []),
        f"  3D Slicer   module MONAI Label, server {address}, then 'Next Sample'",
        f"  Browser     {address}/svgd/ shows where the study stands: next image, ranking, training",
        f"              {address}/ lists everything the server can do, and tries it",
    ]
    lines += [
        "",
        "What to try from another terminal, the image to label next:",
        f"  curl -X POST {address}/activelearning/svgd -H 'Content-Type: application/json' -d '{{}}'",
    ]
    if is_open:
        lines += ["", f"Careful: with HOST={host} everybody who reaches this machine can read images and save labels."]
    return "\n".join([*lines, ""])


def _run(start: Start) -> None:
    os.environ.update(start.environment)
    # MONAI Label starts its training processes as plain 'python', and dcmqi's tools by name.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    # Not by its environment variable: MONAI Label 0.8.5 cannot write the parsed addresses as JSON and ends, here and
    # in every background process. So it is set where start_server has exported its settings already.
    os.environ.pop(CORS, None)
    from monailabel.config import settings
    from monailabel.main import Main

    class Server(Main):  # type: ignore[misc]
        def start_server_init_settings(self, args: object) -> None:
            super().start_server_init_settings(args)
            settings.MONAI_LABEL_CORS_ORIGINS = start.origins

    sys.argv = ["monailabel", *start.arguments]
    Server().run()
