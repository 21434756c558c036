"""A real server process over a studies folder of its own, started, asked and killed by the tests."""

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import requests
import SimpleITK
from monailabel.client import MONAILabelClient
from numpy.typing import NDArray

REPOSITORY = Path(__file__).parents[2]
SAMPLE = REPOSITORY / "sample-data"
STRUCTURES = ("anterior", "posterior")
PHANTOMS = [f"phantom_{number:02}" for number in range(1, 13)]
# As the Slicer module sends them with a label: names and the values that the segments have in the file.
LABEL_INFO = [{"name": name, "idx": value} for value, name in enumerate(STRUCTURES, start=1)]


# Typed as anything, because its functions are not. It reads files by code of its own, as viewers do.
itk: Any = SimpleITK


class Server:
    """``monailabel start_server`` in a process group of its own; everything it writes is under ``folder``.

    ``source`` takes the place of a folder of images, ``environment`` is added to this process's own.
    """

    def __init__(
        self,
        folder: Path,
        conf: Mapping[str, str],
        *,
        app: Path | None = None,
        source: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.studies = folder / "studies"
        self.studies.mkdir(parents=True, exist_ok=True)
        self.source = source or str(self.studies)
        self.environment = environment or {}
        self.folder, self.conf = folder, conf
        self.log_file = folder / "server.log"
        self.app = app or self._own_app()
        self.process: subprocess.Popen[bytes] | None = None
        self.address = ""

    def _own_app(self) -> Path:
        """A copy of apps/svgd, because MONAI Label writes logs into the app's folder."""
        app = self.folder / "app"
        app.mkdir()
        shutil.copy(REPOSITORY / "apps" / "svgd" / "main.py", app)
        return app

    def launch(self) -> "subprocess.Popen[bytes]":
        """Starts the process without waiting for an answer."""
        port = _free_port()
        self.address = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(self.app)]
        command += ["--studies", self.source, "--host", "127.0.0.1", "--port", str(port)]
        for key, value in self.conf.items():
            command += ["--conf", key, value]
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", **self.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self.process

    def start(self) -> "Server":
        """Starts the process and waits until it answers."""
        process = self.launch()

        def answers() -> bool:
            assert process.poll() is None, f"the server ended with {process.returncode}\n{self.log_tail()}"
            try:
                return requests.get(f"{self.address}/info/", timeout=10).ok
            except requests.ConnectionError:
                return False

        self.wait_for(answers, "an answer to /info/")
        return self

    def kill(self) -> None:
        """SIGKILL to the server and all its background processes at once."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def wait_for(self, done: Callable[[], Any], what: str, *, seconds: float = 600) -> None:
        """Polls until ``done`` is true; the server's log stands in the failure."""
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, f"waited in vain for {what}\n{self.log_tail()}"
            time.sleep(0.25)

    def log(self) -> str:
        """What the server and its background processes have printed."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def log_tail(self) -> str:
        """The end of the log, for the message of a failed test."""
        return self.log()[-6000:]

    # Requests

    def slicer(self, client: str = "slicer") -> MONAILabelClient:
        """The client that the 3D Slicer module uses."""
        downloads = self.folder / "downloads"
        downloads.mkdir(exist_ok=True)
        return MONAILabelClient(self.address, tmpdir=str(downloads), client_id=client)

    def request(self, method: str, path: str, **arguments: Any) -> requests.Response:
        """Any request, with time enough for a machine that trains meanwhile."""
        return requests.request(method, f"{self.address}{path}", timeout=120, **arguments)

    def ohif_infer(self, image: str) -> requests.Response:
        """A pre-segmentation as the OHIF panel asks for it: the answer's body is the NRRD file."""
        params = {
            "result_extension": ".nrrd",
            "result_dtype": "uint8",
            "result_compress": False,
            "restore_label_idx": False,
        }
        return self.request(
            "POST",
            "/infer/svgd",
            params={"image": image, "output": "image"},
            files={"params": (None, json.dumps(params))},
        )

    def infer(self, image: str, model: str = "svgd") -> tuple[nibabel.Nifti1Image, dict[str, Any]]:
        """A pre-segmentation, or where it is in doubt, as NIfTI, and what is said of it."""
        file, params = self.slicer().infer(model, image, {"result_extension": ".nii.gz"})
        result = nibabel.load(file)
        assert isinstance(result, nibabel.Nifti1Image)
        result.get_fdata()  # before the next answer
        return result, params

    def next_sample(self, client: str, strategy: str = "svgd") -> dict[str, Any]:
        """The next image for a client."""
        answer: dict[str, Any] = self.slicer(client).next_sample(strategy, {})
        return answer

    def save_label(self, image: str, file: Path, client: str = "slicer") -> dict[str, Any]:
        """Saves a label as the Slicer module does."""
        params = {"label_info": LABEL_INFO, "model": "svgd"}
        answer: dict[str, Any] = self.slicer(client).save_label(image, str(file), params=params)
        return answer

    def image_info(self, image: str) -> dict[str, Any]:
        """What the server knows of an image."""
        answer: dict[str, Any] = self.request("GET", "/datastore/image/info", params={"image": image}).json()
        return answer

    def leases(self) -> list[str]:
        """Ids of the images that somebody holds."""
        objects = self.slicer().datastore()["objects"]
        return [image for image, entry in objects.items() if entry["image"]["info"]["leased_by"]]

    def train_stats(self) -> dict[str, Any]:
        """The trainer's statistics as viewers read them."""
        stats: dict[str, Any] = self.slicer().info()["train_stats"]["svgd"]
        return stats

    def train(self, **params: Any) -> dict[str, Any]:
        """Trains as the Slicer module asks for it, waits for its end, and gives its final statistics."""
        self.slicer().train_start("svgd", params)
        self.wait_training()
        stats = self.train_stats()
        assert stats["status"] == "done", f"{stats}\n{self.log_tail()}"
        return stats

    def wait_training(self) -> None:
        """Until no training is running or waiting."""
        self.wait_for(lambda: not self._active("train"), "the end of the training", seconds=1100)

    def wait_scoring(self) -> None:
        """Until no scoring is running or waiting."""
        self.wait_for(lambda: not self._active("scoring"), "the end of the scoring")

    def wait_training_step(self) -> dict[str, Any]:
        """Until a training that has been started has taken a step; its statistics."""
        before = self.train_stats().get("version")

        def in_the_middle() -> bool:
            stats = self.train_stats()
            return stats.get("version") != before and stats.get("status") == "training" and stats.get("step", 0) > 0

        self.wait_for(in_the_middle, "a step of the training")
        return self.train_stats()

    def _active(self, method: str) -> bool:
        answer = self.request("GET", f"/{method}/", params={"all": "true"})
        return answer.ok and any(task["status"] in ("SUBMITTED", "RUNNING") for task in answer.json())

    # What stands in the studies folder

    def query(self, select: str) -> list[tuple[Any, ...]]:
        """Rows of the state store, read beside the server."""
        connection = sqlite3.connect(f"file:{self.studies / '.svgd' / 'state.sqlite'}?mode=ro", uri=True, timeout=30)
        try:
            return connection.execute(select).fetchall()
        finally:
            connection.close()

    def ranking(self) -> list[str]:
        """Ids in the order of the present ranking."""
        return [row[0] for row in self.query("SELECT image FROM images WHERE rank IS NOT NULL ORDER BY rank")]

    def committee_file(self, version: int) -> Path:
        """Where a published committee is."""
        return self.studies / ".svgd" / str(self.query(f"SELECT file FROM models WHERE version = {version}")[0][0])

    def label_bytes(self) -> dict[str, bytes]:
        """All final labels as they stand on disk."""
        return {file.name: file.read_bytes() for file in sorted((self.studies / "labels" / "final").iterdir())}


def copy_sample(studies: Path) -> None:
    """The sample study with its four labels, without the references."""
    for source in SAMPLE.glob("*.nii.gz"):
        shutil.copy(source, studies)
    shutil.copytree(SAMPLE / "labels", studies / "labels")


def reference(phantom: str) -> Path:
    """The true label of a phantom that carries none in the study."""
    return SAMPLE / "reference" / f"{phantom}.nii.gz"


def mean_dice(labels: NDArray[Any], truth: NDArray[Any]) -> float:
    """Mean of 2|A and B| / (|A| + |B|) over the two structures."""
    scores = []
    for value in range(1, len(STRUCTURES) + 1):
        a, b = labels == value, truth == value
        scores.append(2 * np.sum(a & b) / (np.sum(a) + np.sum(b)))
    return float(np.mean(scores))


def voxels(file: Path) -> NDArray[np.uint8]:
    """A label file's values."""
    image = nibabel.load(file)
    assert isinstance(image, nibabel.Nifti1Image)
    values: NDArray[np.uint8] = np.asarray(image.dataobj).round().astype(np.uint8)
    return values


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
