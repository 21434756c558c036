"""Simulated annotators who work beside each other on one server, and what they saw of it."""

import threading
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
import requests
from tests.conftest import save_nifti
from tests.durability.crowd import Ledger, put_label
from tests.durability.study import random_label
from tests.e2e.server import Server

SKIP_SECONDS = 11.0  # sooner, the same image would be given again


@dataclass
class Record:
    """What all annotators saw: latencies as (seconds since the start, seconds), who holds what, what went wrong."""

    ledger: Ledger
    started: float = field(default_factory=time.monotonic)
    latencies: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    memory: list[tuple[float, float]] = field(default_factory=list)
    holders: dict[str, str] = field(default_factory=dict)
    given_twice: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, image: str, client: str) -> None:
        """A client was given an image."""
        with self.lock:
            if (holder := self.holders.get(image, client)) != client:
                self.given_twice.append(f"{image}: {client} got it while {holder} had it")
            self.holders[image] = client

    def let_go(self, image: str | None) -> None:
        """Before a client sends what ends his lease."""
        with self.lock:
            self.holders.pop(image or "", None)


class Worker(threading.Thread, ABC):
    """A thread that sends requests until the time is over, and times them."""

    def __init__(self, server: Server, record: Record, end: float, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.server, self.record, self.end = server, record, end
        self.http = requests.Session()
        # The server closes a connection that was idle for 5 s, and resets a request that comes just then.
        self.http.headers["Connection"] = "close"

    def run(self) -> None:
        """Works until the end; whatever is raised is recorded."""
        try:
            while time.monotonic() < self.end:
                self.work()
        except Exception as error:  # it would end the thread unseen
            self.record.errors.append(f"{self.name}: {error!r}")

    @abstractmethod
    def work(self) -> None:
        """One round."""

    def ask(
        self, what: str, method: str, path: str, *, expected: tuple[int, ...] = (200,), **arguments: Any
    ) -> requests.Response:
        """A timed request."""
        began = time.monotonic()
        answer = self.http.request(method, f"{self.server.address}{path}", timeout=300, **arguments)
        return self.note(what, began, answer, expected)

    def note(
        self, what: str, began: float, answer: requests.Response, expected: tuple[int, ...] = (200,)
    ) -> requests.Response:
        """Records how long a request took, and an answer that was not expected."""
        self.record.latencies[what].append((began - self.record.started, time.monotonic() - began))
        if answer.status_code not in expected:
            self.record.errors.append(f"{self.name}, {what}: {answer.status_code} {answer.text[:300]}")
        return answer


class Annotator(Worker):
    """Next sample, pre-segmentation, a while of thought, then a label; some images are skipped, some flagged."""

    def __init__(self, server: Server, record: Record, end: float, number: int) -> None:
        super().__init__(server, record, end, f"annotator {number}")
        self.rng = np.random.default_rng(number)
        self.image: str | None = None
        self.flagged: list[str] = []

    def work(self) -> None:
        """One image."""
        self.record.let_go(self.image)
        answer = self.ask("next sample", "POST", "/activelearning/svgd", json={"client_id": self.name}).json()
        self.image = answer.get("id")
        if self.image is None:
            self.record.counts["nothing left"] += 1
            time.sleep(1)
            return
        self.record.take(self.image, self.name)
        parameters = '{"result_extension": ".nrrd", "client_id": "%s"}' % self.name  # noqa: UP031
        self.ask(
            "infer",
            "POST",
            "/infer/svgd",
            params={"image": self.image, "output": "image"},
            files={"params": (None, parameters)},
            expected=(200, 409),  # 409 before the first training
        )
        choice = self.rng.random()
        if choice < 0.05:
            time.sleep(SKIP_SECONDS)
            self.record.counts["skipped"] += 1
            return
        time.sleep(self.rng.uniform(2, 8))
        if choice < 0.15:
            self._flag()
        else:
            self._save()

    def _save(self) -> None:
        assert self.image is not None
        label = random_label(self.rng)
        file = save_nifti(self.server.folder / "clients" / self.name / f"{self.image}.nii.gz", label)
        began = time.monotonic()
        answer = self.note("save", began, put_label(self.http, self.server, self.image, file, self.name))
        if answer.ok:
            self.record.ledger.acknowledge(self.image, label, self.name)
            self.record.counts["saved"] += 1

    def _flag(self) -> None:
        assert self.image is not None
        self.record.let_go(self.image)
        self.ask("flag", "POST", "/svgd/flag", params={"image": self.image}, json={"reason": "motion"})
        self.flagged.append(self.image)
        self.record.counts["flagged"] += 1
        if len(self.flagged) > 2:
            self.ask("flag", "POST", "/svgd/flag", params={"image": self.flagged.pop(0)}, json={})


class Trainer(Worker):
    """Trains again and again; each training scores the pool at its end."""

    def work(self) -> None:
        """One training."""
        answer = self.ask("train", "POST", "/train/svgd", json={"steps": 300}, expected=(200, 409))  # 409: no label yet
        while answer.ok and time.monotonic() < self.end:
            time.sleep(1)
            status = self.ask("status", "GET", "/train/", params={"check_if_running": "true"}, expected=(200, 404))
            if status.status_code == 404:
                break
        self.record.counts["trainings"] += answer.ok
        time.sleep(5)


class Watcher(Worker):
    """What a viewer's status display asks for, and the server's memory."""

    def work(self) -> None:
        """One look."""
        self.ask("info", "GET", "/info/")
        assert self.server.process is not None
        resident = psutil.Process(self.server.process.pid).memory_info().rss / 2**20
        self.record.memory.append((time.monotonic() - self.record.started, resident))
        time.sleep(1)
