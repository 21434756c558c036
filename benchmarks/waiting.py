"""How long an annotator waits while the machine is busy: next sample, save and status during the server's long work.

One client asks in turn, again and again, while an inference, a training or a scoring runs beside. The ratio is the
worst p99 over 200 ms.
"""

import itertools
import json
import shutil
import sqlite3
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import requests
from tests.e2e.server import LABEL_INFO, PHANTOMS, Server, copy_sample, reference

from benchmarks.common import Measurement

LIMIT_MS = 200.0
WORK = ("idle", "inference", "training", "scoring")


def run(*, quick: bool) -> Measurement:
    """The sample study with 200 copies of its images; each kind of work for 20 s, quickly for 3 s."""
    with tempfile.TemporaryDirectory() as temporary:
        server = Server(Path(temporary), {"task": "sample"})
        copy_sample(server.studies)
        for number in range(50 if quick else 200):
            shutil.copy(server.studies / "phantom_02.nii.gz", server.studies / f"copy_{number:03}.nii.gz")
        try:
            server.start()
            server.train(steps=5)
            server.wait_scoring()
            details = {}
            for work in WORK:
                for what, p99 in _during(server, work, 3 if quick else 20).items():
                    details[f"{work}: {what}, p99 ms"] = p99
        finally:
            server.kill()
    worst = max(details.values())
    return Measurement("waiting", worst / LIMIT_MS, 1.0, worst, LIMIT_MS, "ms, worst p99", details)


def _during(server: Server, work: str, seconds: float) -> dict[str, float]:
    """p99 of each request in milliseconds while some work goes on; the work is over when this returns."""
    over = threading.Event()
    inferring = threading.Thread(target=_infer, args=(server, over))
    if work == "inference":
        inferring.start()
    elif work == "training":
        server.request("POST", "/train/svgd", json={"steps": 100_000})
        server.wait_training_step()
    elif work == "scoring":
        _forget_scores(server)
        server.request("POST", "/scoring/entropy_mi", json={})
        server.wait_for(lambda: server.query("SELECT COUNT(*) FROM scores")[0][0], "the first score")
    latencies: dict[str, list[float]] = defaultdict(list)
    asked = _requests(requests.Session(), server)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for what, ask in asked.items():
            began = time.monotonic()
            answer = ask()
            latencies[what].append((time.monotonic() - began) * 1000)
            assert answer.ok or answer.status_code == 404, answer.text  # 404: no training is running
            time.sleep(0.02)
    over.set()
    if work == "inference":
        inferring.join()
    elif work == "training":
        server.request("DELETE", "/train/")
    elif work == "scoring":
        assert server.request("DELETE", "/scoring/").json(), "the scoring was over before the time was"
    return {what: round(float(np.percentile(values, 99)), 1) for what, values in latencies.items()}


def _requests(session: requests.Session, server: Server) -> dict[str, Callable[[], requests.Response]]:
    number = itertools.count()
    label = reference("phantom_02").read_bytes()
    parameters = json.dumps({"label_info": LABEL_INFO, "client_id": "bench"})

    def next_sample() -> requests.Response:
        client = f"client {next(number)}"  # who asks again at once gets the same image
        return session.post(f"{server.address}/activelearning/svgd", json={"client_id": client})

    def save() -> requests.Response:
        return session.put(
            f"{server.address}/datastore/label",
            params={"image": "phantom_02"},
            data={"params": parameters},
            files={"label": ("label.nii.gz", label)},
        )

    return {
        "next sample": next_sample,
        "save": save,
        "status": lambda: session.get(f"{server.address}/train/", params={"check_if_running": "true"}),
        "info": lambda: session.get(f"{server.address}/info/"),
    }


def _infer(server: Server, over: threading.Event) -> None:
    """One inference after the other."""
    for phantom in itertools.cycle(PHANTOMS):
        if over.is_set():
            return
        server.infer(phantom)


def _forget_scores(server: Server) -> None:
    """What has been scored is not scored again."""
    connection = sqlite3.connect(server.studies / ".svgd" / "state.sqlite", timeout=30)
    with connection:
        connection.execute("DELETE FROM scores")
    connection.close()
