"""Annotators that save and delete labels until the server dies, and a ledger of what it had acknowledged by then."""

import hashlib
import json
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import requests
from numpy.typing import NDArray
from tests.conftest import save_nifti
from tests.durability.study import random_label
from tests.e2e.server import Server, voxels

LABEL_INFO = [{"name": "one", "idx": 1}, {"name": "two", "idx": 2}]


@dataclass
class Ledger:
    """What clients were told, image by image; an image belongs to one client, so that its saves have an order."""

    studies: Path
    current: dict[str, str | None] = field(default_factory=dict)
    """Digest of the label file that was last seen in place; None for a label that was deleted."""
    versions: dict[Path, tuple[str, str]] = field(default_factory=dict)
    """Version file of each acknowledged label -> its digest and who saved it."""
    unanswered: dict[str, list[NDArray[np.uint8] | None]] = field(default_factory=lambda: defaultdict(list))
    """Labels, or None for a deletion, on their way when the server died: each may have been done or not."""
    problems: list[str] = field(default_factory=list)

    def label_file(self, image: str) -> Path:
        """Where the image's label stands."""
        return self.studies / "labels" / "final" / f"{image}.nii.gz"

    def acknowledge(self, image: str, sent: NDArray[np.uint8], client: str) -> None:
        """The server answered 200: the label must be on disk now, as it was sent."""
        file = self.label_file(image)
        if not np.array_equal(voxels(file), sent):
            self.problems.append(f"{image}: the acknowledged label is not the one in place")
        versions = (self.studies / ".svgd" / "versions" / image).glob("[0-9]*.nii.gz")
        newest = max(versions, key=lambda version: int(version.name.split(".")[0]))
        self.current[image] = digest(file)
        self.versions[newest] = (digest(newest), client)
        if digest(newest) != digest(file):
            self.problems.append(f"{image}: {newest.name} is not the label in place")
        self.unanswered[image].clear()

    def acknowledge_deletion(self, image: str) -> None:
        """The server answered 200 to a deletion."""
        if self.label_file(image).exists():
            self.problems.append(f"{image}: the deleted label is still in place")
        self.current[image] = None
        self.unanswered[image].clear()

    def check(self) -> None:
        """What was acknowledged is in place, or what was on its way then; every version is as it was."""
        for image, known in self.current.items():
            file = self.label_file(image)
            found = digest(file) if file.is_file() else None
            if found != known:
                if not any(_is_in(file, sent) for sent in self.unanswered[image]):
                    self.problems.append(f"{image}: the label in place is not what was sent last")
                self.current[image] = found
            self.unanswered[image].clear()
        for version, (known, _) in self.versions.items():
            if not version.is_file() or digest(version) != known:
                self.problems.append(f"{version.parent.name}: version {version.name} is gone or has changed")


class Saver(threading.Thread):
    """One client that saves random labels for its own images, and deletes some, until the server is gone."""

    def __init__(self, server: Server, ledger: Ledger, name: str, images: list[str], seed: int) -> None:
        super().__init__(name=name, daemon=True)
        self.server, self.ledger, self.images = server, ledger, images
        self.rng = np.random.default_rng(seed)
        self.folder = server.folder / "clients" / name
        self.http = requests.Session()
        self.saved = 0

    def run(self) -> None:
        """One request after the other."""
        try:
            while True:
                image = str(self.rng.choice(self.images))
                is_labelled = self.ledger.current.get(image) is not None
                self._withdraw(image) if is_labelled and self.rng.random() < 0.3 else self._save(image)
        except requests.RequestException:
            return  # the server is gone
        except Exception as error:  # it would end the thread unseen, and the test would pass
            self.ledger.problems.append(f"{self.name}: {error!r}")

    def _save(self, image: str) -> None:
        label = random_label(self.rng)
        file = save_nifti(self.folder / f"{image}.nii.gz", label)
        self.ledger.unanswered[image].append(label)
        answer = put_label(self.http, self.server, image, file, self.name)
        if self._is_done(answer, image):
            self.ledger.acknowledge(image, label, self.name)
            self.saved += 1

    def _withdraw(self, image: str) -> None:
        self.ledger.unanswered[image].append(None)
        parameters = {"id": image, "tag": "final"}
        answer = self.http.delete(f"{self.server.address}/datastore/label", params=parameters, timeout=120)
        if self._is_done(answer, image):
            self.ledger.acknowledge_deletion(image)

    def _is_done(self, answer: requests.Response, image: str) -> bool:
        if answer.status_code != 200:
            self.ledger.problems.append(f"{image}: {answer.status_code} {answer.text[:300]}")
        return answer.status_code == 200


def put_label(http: requests.Session, server: Server, image: str, file: Path, client: str) -> requests.Response:
    """Saves a label as the Slicer module does, over a connection that is kept."""
    params = {"label_info": LABEL_INFO, "client_id": client, "model": "svgd"}
    with file.open("rb") as stream:
        return http.put(
            f"{server.address}/datastore/label",
            params={"image": image},
            data={"params": json.dumps(params)},
            files={"label": (file.name, stream)},
            timeout=120,
        )


def _is_in(file: Path, sent: NDArray[np.uint8] | None) -> bool:
    """Whether the file is what was sent: a label, or None for a deletion."""
    if sent is None or not file.is_file():
        return sent is None and not file.exists()
    return np.array_equal(voxels(file), sent)


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
