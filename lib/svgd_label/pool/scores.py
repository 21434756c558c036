"""What scoring has found, kept row by row and by file content: scores, grey-level codes, mutual information."""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from svgd_label.pool.database import Database
from svgd_label.pool.records import ScoreRow
from svgd_label.pool.schema import DERIVED

_COMPARED = """
    SELECT partner, COUNT(*) FROM mutual_information WHERE image <> partner
    AND partner IN (SELECT value FROM json_each(:labelled)) AND image IN (SELECT value FROM json_each(:images))
    GROUP BY partner
"""
# Of two labelled images one order is asked for only: ``mirror_mutual_information`` makes the other.
_MISSING = """
    SELECT i.value, p.value FROM json_each(:images) AS i CROSS JOIN json_each(:partners) AS p
    WHERE NOT EXISTS (SELECT 1 FROM mutual_information WHERE image = i.value AND partner = p.value)
    AND (i.value < p.value OR i.value NOT IN (SELECT value FROM json_each(:partners)))
"""
_MIRROR = """
    INSERT OR IGNORE INTO mutual_information
    SELECT partner, image, value FROM mutual_information WHERE image IN (SELECT value FROM json_each(:partners))
        AND partner IN (SELECT value FROM json_each(:labelled))
    UNION ALL
    SELECT partner, image, value FROM mutual_information WHERE partner IN (SELECT value FROM json_each(:partners))
        AND image IN (SELECT value FROM json_each(:labelled))
"""
ROWS_AT_ONCE = 2000
"""Of mutual information in one transaction, about: an annotator's save waits for it, at the scoring's low priority."""
_OVER = {"mean": "AVG", "sum": "SUM", "max": "MAX"}


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

    def features(self, version: int, images: Sequence[str]) -> NDArray[np.float32]:
        """(N, F) of those of these images that a version has scored, by id."""
        rows = self.database.connection.execute(
            "SELECT s.features FROM scores s JOIN images i USING (image, fingerprint) WHERE s.version = ? "
            "AND s.features IS NOT NULL AND s.image IN (SELECT value FROM json_each(?)) ORDER BY s.image",
            (version, json.dumps(list(images))),
        )
        found = [np.frombuffer(row["features"], dtype=np.float32) for row in rows]
        return np.stack(found) if found else np.zeros((0, 0), np.float32)

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

    def coded_images(self) -> set[str]:
        """Ids of the images that have codes of their present files."""
        rows = self.database.connection.execute("SELECT c.image FROM codes c JOIN images i USING (image, fingerprint)")
        return {row["image"] for row in rows}

    def partners_to_compare(self, images: Sequence[str], labelled: Sequence[str]) -> list[str]:
        """The labelled images with which some image has no value yet."""
        lists = {"images": json.dumps(list(images)), "labelled": json.dumps(list(labelled))}
        compared: dict[str, int] = dict(self.database.connection.execute(_COMPARED, lists))
        known = set(images)
        return [partner for partner in labelled if compared.get(partner, 0) < len(known - {partner})]

    def missing_pairs(self, images: Sequence[str], partners: Sequence[str]) -> NDArray[np.bool_]:
        """(len(images), len(partners)): the pairs without a value; of two that are both partners one order only."""
        row, column = ({image: index for index, image in enumerate(ids)} for ids in (images, partners))
        missing = np.zeros((len(images), len(partners)), dtype=np.bool_)
        lists = {"images": json.dumps(list(images)), "partners": json.dumps(list(partners))}
        for image, partner in self.database.connection.execute(_MISSING, lists):
            missing[row[image], column[partner]] = True
        return missing

    def write_mutual_information(
        self, rows: Iterable[tuple[str, str, float]], fingerprints: Mapping[str, str] | None = None
    ) -> None:
        """Stores (image, partner, nats) rows, but none of a file that has changed.

        Args:
            rows: the values; the other order of a pair is a row of its own.
            fingerprints: of the files when their codes were read; None takes all rows.
        """
        remaining = iter(rows)
        while block := list(itertools.islice(remaining, ROWS_AT_ONCE)):
            with self.database.transaction() as connection:
                if fingerprints is not None:
                    present = self.fingerprints()
                    same = {image for image, content in fingerprints.items() if present.get(image) == content}
                    block = [row for row in block if row[0] in same and row[1] in same]
                connection.executemany("INSERT OR REPLACE INTO mutual_information VALUES (?, ?, ?)", block)

    def mirror_mutual_information(self, partners: Sequence[str], labelled: Sequence[str]) -> None:
        """What is known of one of the partners and a labelled image in one order is written in the other."""
        size = max(1, ROWS_AT_ONCE // max(1, 2 * len(labelled)))
        for start in range(0, len(partners), size):
            lists = {
                "partners": json.dumps(list(partners[start : start + size])),
                "labelled": json.dumps(list(labelled)),
            }
            with self.database.transaction() as connection:
                connection.execute(_MIRROR, lists)

    def labelled_information(
        self, images: Sequence[str], labelled: Sequence[str], *, over: str = "mean"
    ) -> NDArray[np.float64]:
        """Each image's mutual information with the labelled set T, from the pairs that were written.

        An image's MI with itself never counts; one whose only labelled partner is itself takes the mean of the others';
        an empty T makes the term 0.
        docs/method.md: "with the labelled set".

        Args:
            images: the pool.
            labelled: T.
            over: ``mean``, ``sum`` or ``max`` over T.

        Returns:
            (len(images),) in nats.
        """
        # The plus keeps SQLite from the partners' index, which takes ten times as long as the table in its own order.
        found = dict(
            self.database.connection.execute(
                f"SELECT image, {_OVER[over]}(value) FROM mutual_information WHERE image <> partner "
                "AND +partner IN (SELECT value FROM json_each(?)) GROUP BY image",
                (json.dumps(list(labelled)),),
            )
        )
        values = np.array([found.get(image, np.nan) for image in images], dtype=np.float64)
        known = values[~np.isnan(values)]
        values[np.isnan(values)] = known.mean() if known.size else 0.0
        return values

    def content_changed(self, image: str) -> None:
        """The image's file is another: its scores, codes, information, rank, proposal and mark "unusable" are void.

        Its label is not, since files are also touched and headers mended; but it is marked as one to look at.
        """
        with self.database.transaction() as connection:
            for table in ("scores", "codes", "mutual_information", "ranking"):
                connection.execute(f"DELETE FROM {table} WHERE image = ?", (image,))
            connection.execute("DELETE FROM mutual_information WHERE partner = ?", (image,))
            connection.execute(
                "UPDATE images SET unusable = NULL, rank = NULL, queue_position = NULL, inferred_version = NULL "
                "WHERE image = ?",
                (image,),
            )
            connection.execute(
                "UPDATE labels SET info = json_set(info, '$.image_changed', json('true')) "
                "WHERE image = ? AND tag = 'final'",
                (image,),
            )
