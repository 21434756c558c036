"""A clock that tests set, a state store in a temporary folder, and pools over it."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from svgd_label.pool import Database, Pool


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "state", task="hippocampus")


@pytest.fixture
def add_images(database: Database) -> Callable[[Iterable[str]], None]:
    def add(images: Iterable[str]) -> None:
        with database.transaction() as connection:
            connection.executemany(
                "INSERT INTO images (image, name, ext, fingerprint) VALUES (?, ?, '.nii.gz', '1:1')",
                [(image, f"{image}.nii.gz") for image in images],
            )

    return add


@pytest.fixture
def pool(database: Database, clock: Clock, add_images: Callable[[Iterable[str]], None]) -> Pool:
    """Images a to j, nothing kept back for validation, frequency at most 3."""
    add_images("abcdefghij")
    return Pool(database, validation="none", max_frequency=3, clock=clock)
