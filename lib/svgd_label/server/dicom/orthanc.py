"""A DICOM server on this machine: Orthanc with DICOMweb, from Debian's packages, with its data in one folder."""

import contextlib
import ctypes
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import requests
import typer
from pydicom.misc import is_dicom

from svgd_label.server.start import ROOT, StartError
from svgd_label.server.start import serve as serve_studies

USER = "svgd"
FILTER = "MONAI_LABEL_DICOMWEB_SEARCH_FILTER"
_PLUGINS = (Path("/usr/share/orthanc/plugins"), Path("/usr/lib/orthanc"), Path("/usr/local/share/orthanc/plugins"))
_INSTALL = "install the Debian packages with 'apt-get install orthanc orthanc-dicomweb', or use compose.yaml"
_START_SECONDS = 60.0
_PR_SET_PDEATHSIG = 1


def serve(
    dicom: Path | None,
    task: str | None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    dicom_port: int = 8042,
    conf: Mapping[str, str] | None = None,
) -> None:
    """Runs Orthanc and the server for annotators on it until Ctrl-C.

    Args:
        dicom: a folder of DICOM files, at any depth, that is loaded first.
        task, host, port, conf: as for :func:`svgd_label.server.start.serve`.
        dicom_port: Orthanc's port; it answers this machine only.

    Raises:
        StartError: one sentence; Orthanc has then been ended.
    """
    from svgd_label.server.start import prepare
    from svgd_label.tasks import load_task

    # With a password, or any web page that is open on this machine could change what is stored.
    password = secrets.token_urlsafe(24)
    orthanc = Orthanc(ROOT / "studies" / "orthanc", dicom_port, (USER, password))
    os.environ |= {"MONAI_LABEL_DICOMWEB_USERNAME": USER, "MONAI_LABEL_DICOMWEB_PASSWORD": password}
    prepare(orthanc.url, task, host=host, port=port, conf=conf or {})  # what is wrong is said before anything starts
    named = load_task(task or (conf or {}).get("task") or "hippocampus").modality
    with orthanc.running():
        if dicom is not None:
            typer.echo(f"{orthanc.load(dicom)} DICOM files of {dicom} are on the server.")
        if FILTER not in os.environ and not named and (modality := orthanc.first_modality()):
            os.environ[FILTER] = json.dumps({"Modality": modality})
            typer.echo(f"The images are its {modality} series; the task's field 'modality' would name others.")
        serve_studies(orthanc.url, task, host=host, port=port, conf=conf)


class Orthanc:
    """One Orthanc process.

    Args:
        folder: where it keeps its configuration, its log and what is stored.
        port: of its HTTP server, which refuses other machines.
        user: name and password that it asks for; None: nobody is asked.

    Raises:
        StartError: Orthanc or its plug-in is not installed.
    """

    def __init__(self, folder: Path, port: int, user: tuple[str, str] | None = None) -> None:
        self.folder = folder
        self.port = port
        self.user = user
        self.url = f"http://127.0.0.1:{port}/dicom-web"
        self.program = find_program()
        self.plugin = find_plugin()
        self._process: subprocess.Popen[bytes] | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator["Orthanc"]:
        """Starts it, and ends it in any case."""
        try:
            self.start()
            yield self
        finally:
            self.stop()

    def start(self) -> None:
        """Starts it and waits until it answers.

        Raises:
            StartError: its port is taken, or it ended.
        """
        self._check_port()
        self.folder.mkdir(parents=True, exist_ok=True)
        configuration = self.folder / "orthanc.json"
        configuration.write_text(json.dumps(self._configuration(), indent=2), encoding="utf-8")
        configuration.chmod(0o600)
        log = self.folder / "orthanc.log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [str(self.program), str(configuration)],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C ends our server first, which still asks this one
                preexec_fn=_end_with_parent,
            )
        end = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise StartError(f"Orthanc did not start; {log} says why")
            time.sleep(0.1)

    def stop(self, *, kill: bool = False) -> None:
        """Ends it, and waits for that."""
        if self._process is not None:
            self._process.kill() if kill else self._process.terminate()
            self._process.wait()
            self._process = None

    def load(self, folder: Path) -> int:
        """Stores all DICOM files below a folder; how many. One that Orthanc refuses is named.

        Raises:
            StartError: no such folder, or no DICOM file in it that Orthanc takes.
        """
        if not folder.is_dir():
            raise StartError(f"{folder}: there is no such folder; DICOM= takes one with DICOM files in it")
        count = 0
        for file in sorted(folder.rglob("*")):
            if not file.is_file() or file.name.upper() == "DICOMDIR" or not is_dicom(file):  # a CD's list of its files
                continue
            with file.open("rb") as stream:
                answer = self.ask("POST", "/instances", data=stream)
            if not answer.ok:
                typer.echo(f"{file}: Orthanc refuses this file (HTTP {answer.status_code}); is it complete?", err=True)
                continue
            count += 1
        if not count:
            raise StartError(f"{folder}: no DICOM file is in this folder that Orthanc takes")
        return count

    def first_modality(self) -> str | None:
        """Modality of the first series of images that is found; None where there is none."""
        series = self.ask("GET", "/series", params={"expand": ""}).json()
        found = [entry["MainDicomTags"].get("Modality", "") for entry in series]
        images = [modality for modality in found if modality in ("MR", "CT", "PT", "NM", "US", "XA")]
        return images[0] if images else None

    def ask(self, method: str, path: str, **arguments: Any) -> requests.Response:
        """A request to Orthanc's own interface."""
        address = f"http://127.0.0.1:{self.port}{path}"
        return requests.request(method, address, auth=self.user, timeout=60, **arguments)

    def _answers(self) -> bool:
        try:
            return self.ask("GET", "/system").ok
        except requests.ConnectionError:
            return False

    def _check_port(self) -> None:
        try:
            requests.get(f"http://127.0.0.1:{self.port}/", timeout=2)
        except requests.ConnectionError:
            return
        except requests.RequestException:
            pass  # something answers, if not as a web server does
        raise StartError(f"port {self.port} is taken by another program; end it or take DICOM_PORT={self.port + 1}")

    def _configuration(self) -> dict[str, Any]:
        return {
            "Name": "SVGD Label",
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "storage"),
            "HttpPort": self.port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": self.user is not None,
            "RegisteredUsers": {} if self.user is None else dict([self.user]),
            "DicomServerEnabled": False,
            "Plugins": [str(self.plugin)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }


def _end_with_parent() -> None:
    """Linux ends this process when its parent has ended, killed or not."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def find_program() -> Path:
    """Orthanc itself, or StartError."""
    found = shutil.which("Orthanc", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    if found is None:
        raise StartError(f"Orthanc, the DICOM server, is not installed; {_INSTALL}")
    return Path(found)


def find_plugin() -> Path:
    """Orthanc's plug-in for DICOMweb, or StartError."""
    for folder in _PLUGINS:
        for file in sorted(folder.glob("libOrthancDicomWeb.so*")):
            return file
    raise StartError(f"Orthanc's plug-in for DICOMweb is not installed; {_INSTALL}")
