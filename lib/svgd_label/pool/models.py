"""The committees that were published: versions, their files, what was measured of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from svgd_label.pool.database import Database


class Models:
    """Model versions of one studies folder, in the order in which they were trained."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def newest(self) -> int | None:
        """The newest published version; None where there is none."""
        row = self._database.connection.execute("SELECT MAX(version) AS version FROM models").fetchone()
        return None if row["version"] is None else int(row["version"])

    def next_version(self) -> int:
        """The version that the next training publishes: from 1 on, 0 being the shipped committee."""
        last = self._database.connection.execute(
            "SELECT MAX(version) AS version FROM (SELECT version FROM models UNION SELECT version FROM acquisitions "
            "UNION SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'withdrawn')"
        ).fetchone()["version"]
        return 1 if last is None else int(last) + 1

    def publish(self, version: int, file: Path, metrics: dict[str, Any]) -> None:
        """Makes a committee the newest; its file must be complete and flushed. Once more for one file changes nothing.

        Raises:
            ValueError: the version has been given to another file.
        """
        name = str(file.relative_to(self._database.folder) if file.is_relative_to(self._database.folder) else file)
        with self._database.transaction() as connection:
            row = connection.execute("SELECT file FROM models WHERE version = ?", (version,)).fetchone()
            if row is not None:
                if row["file"] != name:
                    raise ValueError(f"model version {version} is {row['file']}, it cannot be {name} as well")
                return
            connection.execute(
                "INSERT INTO models VALUES (?, ?, ?, ?)",
                (version, name, self._clock(), json.dumps(metrics, default=str)),
            )

    def withdraw(self, version: int) -> None:
        """Forgets a published version, for one whose file is gone or not wanted; its number is not given again."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM models WHERE version = ?", (version,))
            connection.execute("DELETE FROM scores WHERE version = ?", (version,))
            self._database.set("withdrawn", str(max(version, int(self._database.get("withdrawn") or 0))))
            if self._database.get("ranking_version") == str(version):
                connection.execute("DELETE FROM meta WHERE key = 'ranking_version'")

    def file(self, version: int | None = None) -> Path | None:
        """File of a version, the newest by default; None where there is none."""
        version = self.newest() if version is None else version
        row = self._database.connection.execute("SELECT file FROM models WHERE version = ?", (version,)).fetchone()
        return None if row is None else self._database.folder / row["file"]

    def metrics(self, version: int) -> dict[str, Any]:
        """What was published with a version; empty for one that is not known."""
        row = self._database.connection.execute("SELECT metrics FROM models WHERE version = ?", (version,)).fetchone()
        metrics: dict[str, Any] = {} if row is None else json.loads(row["metrics"])
        return metrics
