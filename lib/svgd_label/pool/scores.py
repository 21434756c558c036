"""What scoring has found, kept row by row and by file content: scores, grey-level codes, mutual information."""

import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from svgd_label.pool.database import Database
from svgd_label.pool.records import ScoreRow
from svgd_label.pool.schema import DERIVED


class Scores:
    """Rows of the scoring, which fall away with the file content or the settings that they were made of."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def made_with(self, settings: str) -> None:
        """Drops all rows where they were made with other settings (grid, normalisation, bins), in any one spelling."""
        with self.database.transaction() as connection:
            if self.database.get("settings") != settings:
                for table in DERIVED:
                    connection.execute(f"DELETE FROM {table}")
                # What was saturated after one normalisation need not be after another.
                connection.execute("UPDATE images SET unusable = NULL WHERE unusable IS NOT NULL")
                self.database.set("settings", settings)

    def fingerprints(self) -> dict[str, str]:
        """Image -> "size:mtime_ns" of its file, as last seen."""
        rows = self.database.connection.execute("SELECT image, fingerprint FROM images WHERE present = 1")
        return {row["image"]: row["fingerprint"] for row in rows}

    def write_score(self, version: int, row: ScoreRow, *, fingerprint: str | None = None) -> None:
        """Writes one row, durable at return.

        Args:
            version: the model version that scored.
            row: the scores.
            fingerprint: that of the file when it was read; None takes the present one.
        """
        with self.database.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO scores SELECT ?, image, COALESCE(?, fingerprint), ?, ?, ?, ?, ?, ? "
                "FROM images WHERE image = ?",
                (
                    version,
                    fingerprint,
                    row.entropy,
                    row.expected_entropy,
                    row.jsd,
                    row.variance,
                    json.dumps(dict(row.details)),
                    None if row.features is None else np.asarray(row.features, dtype=np.float32).tobytes(),
                    row.image,
                ),
            )

    def scores(self, version: int) -> list[ScoreRow]:
        """The rows of a version whose files are there unchanged, by id."""
        rows = self.database.connection.execute(
            "SELECT s.* FROM scores s JOIN images i USING (image, fingerprint) "
            "WHERE s.version = ? AND i.present = 1 ORDER BY s.image",
            (version,),
        )
        return [
            ScoreRow(
                image=row["image"],
                entropy=row["entropy"],
                expected_entropy=row["expected_entropy"],
                jsd=row["jsd"],
                variance=row["variance"],
                details=json.loads(row["details"]),
                features=None if row["features"] is None else np.frombuffer(row["features"], dtype=np.float32),
            )
            for row in rows
        ]

    def scored_images(self, version: int) -> set[str]:
        """Ids of the rows of ``scores(version)``."""
        rows = self.database.connection.execute(
            "SELECT s.image FROM scores s JOIN images i USING (image, fingerprint) WHERE s.version = ?", (version,)
        )
        return {row["image"] for row in rows}

    def codes(self, images: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
        """Grey-level codes ``(N,)`` of those images that have some, for their present files."""
        select = "SELECT c.data FROM codes c JOIN images i USING (image, fingerprint) WHERE c.image = ?"
        found = ((image, self.database.connection.execute(select, (image,)).fetchone()) for image in images)
        return {image: np.frombuffer(row["data"], dtype=np.uint8) for image, row in found if row is not None}

    def write_codes(
        self, codes: Mapping[str, NDArray[np.uint8]], fingerprints: Mapping[str, str] | None = None
    ) -> None:
        """Stores codes of any shape; they come back flat. ``fingerprints``: of the files when they were read."""
        known = fingerprints or {}
        with self.database.transaction() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO codes SELECT image, COALESCE(?, fingerprint), ? FROM images WHERE image = ?",
                [
                    (known.get(image), np.ascontiguousarray(data, dtype=np.uint8).tobytes(), image)
                    for image, data in codes.items()
                ],
            )

    def mutual_information(self) -> dict[tuple[str, str], float]:
        """(image, partner) -> nats, for the pairs that were written."""
        rows = self.database.connection.execute("SELECT image, partner, value FROM mutual_information")
        return {(row[0], row[1]): row[2] for row in rows}

    def write_mutual_information(self, rows: Iterable[tuple[str, str, float]]) -> None:
        """Stores (image, partner, nats) rows."""
        with self.database.transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO mutual_information VALUES (?, ?, ?)", rows)

    def content_changed(self, image: str) -> None:
        """The image's file is another: its scores, codes, information, rank and mark "unusable" are void."""
        with self.database.transaction() as connection:
            for table in ("scores", "codes", "mutual_information", "ranking"):
                connection.execute(f"DELETE FROM {table} WHERE image = ?", (image,))
            connection.execute("DELETE FROM mutual_information WHERE partner = ?", (image,))
            connection.execute(
                "UPDATE images SET unusable = NULL, rank = NULL, queue_position = NULL WHERE image = ?", (image,)
            )
