"""A server process that an experiment starts, asks over HTTP, and never leaves behind."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from svgd_label.experiments.experiment import ExperimentError

if TYPE_CHECKING:
    from requests import Response

POLL_SECONDS = 0.5
ANSWER_SECONDS = 300.0
BUSY = 429
_SERVE = "from svgd_label.cli import main; main()"
# The shell waits for the end of its input, which comes when this process ends, however it ends. Then it kills the
# server and all that the server has started, so that nothing works on beside the next attempt.
_UNTIL_WE_END = '{ "$@"; kill -9 0; } & cat; kill -9 0'


@contextmanager
def served(studies: Path, task: Path, conf: Mapping[str, object], log: Path) -> Iterator["ServerProcess"]:
    """``python main.py serve`` on this machine as long as the block runs, in as many threads as this process.

    Args:
        studies: the folder of images.
        task: a task's YAML file.
        conf: settings, as after ``--conf``.
        log: what the server prints is added here.

    Raises:
        ExperimentError: the server does not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", _SERVE, "serve", f"--studies={studies}", f"--task={task}", f"--port={port}"]
    for key, value in conf.items():
        command += ["--conf", f"{key}={value}"]
    # The user's own settings of MONAI Label, as logins and filters, are for his annotators.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MONAI_LABEL_")}
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONUNBUFFERED": "1"}
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["sh", "-c", _UNTIL_WE_END, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment | threads,
            start_new_session=True,
        )
    try:
        server = ServerProcess(process, f"http://127.0.0.1:{port}", log)
        server.wait(server.answers)
        yield server
    finally:
        process.communicate()  # the end of its input


class ServerProcess:
    """A server and what can be asked of it."""

    def __init__(self, process: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
        import requests  # comes with MONAI Label, which the core does without

        self.process, self.address, self.log = process, address, log
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy stands between
        self._errors = requests.RequestException

    def answers(self) -> bool:
        """Whether it is there, and not another server that has taken the port meanwhile."""
        try:
            answered = self._session.get(f"{self.address}/info/", timeout=ANSWER_SECONDS).ok
        except self._errors:
            return False
        return bool(answered) and self._listens()

    def _listens(self) -> bool:
        port = int(self.address.rsplit(":", 1)[1])
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.Error):
                listening = [c.laddr.port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
                if port in listening:
                    return True
        return False

    def ask(self, method: str, path: str, **arguments: Any) -> Any:
        """The answer to a request.

        Raises:
            ExperimentError: the server refuses it, with the server's sentence, or is gone.
        """
        answer = self._request(method, path, **arguments)
        if not answer.ok:
            raise self._failed(f"{method} {path} was answered with {answer.status_code}, {answer.text[:300]}")
        return answer.json()

    def wait(self, done: Callable[[], bool]) -> None:
        """Waits for something that the server does by itself.

        Raises:
            ExperimentError: the server has ended.
        """
        while not done():
            if self.process.poll() is not None:
                raise self._failed(f"it has ended ({_last_line(self.log)})")
            time.sleep(POLL_SECONDS)

    def work(self, done: Callable[[], bool], path: str, params: Mapping[str, object]) -> None:
        """Sees to it that something is done: waits for what is under way, then asks for it where that was not it.

        Raises:
            ExperimentError: the work has ended, and it is not done.
        """
        asked = False
        while True:
            busy = self._is_busy()  # before the look whether it is done: what ends in between is seen as busy
            if done():
                return
            if busy:
                time.sleep(POLL_SECONDS)
            elif asked:
                reason = self.train_stats().get("error", _last_line(self.log))
                raise self._failed(f"POST {path} came to nothing ({reason})")
            else:
                answer = self._request("POST", path, json=dict(params))
                asked = answer.ok
                if not answer.ok and answer.status_code != BUSY:
                    raise self._failed(f"POST {path} was answered with {answer.status_code}, {answer.text[:300]}")

    def train_stats(self) -> dict[str, Any]:
        """Statistics of the last training, as viewers read them."""
        stats: dict[str, Any] = self.ask("GET", "/info/")["train_stats"]["svgd"]
        return stats

    def _is_busy(self) -> bool:
        answers = [self._request("GET", f"/{method}/", params={"all": "true"}) for method in ("train", "scoring")]
        # 404: there was no task yet.
        tasks = [task for answer in answers if answer.ok for task in answer.json()]
        return any(task["status"] in ("SUBMITTED", "RUNNING") for task in tasks)

    def _request(self, method: str, path: str, **arguments: Any) -> "Response":
        try:
            return self._session.request(method, f"{self.address}{path}", timeout=ANSWER_SECONDS, **arguments)
        except self._errors as error:
            raise self._failed(f"{method} {path} has no answer ({type(error).__name__})") from error

    def _failed(self, what: str) -> ExperimentError:
        return ExperimentError(f"the server failed: {what}; see {self.log}")


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "without a word")
