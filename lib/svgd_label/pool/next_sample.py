"""Which image an annotator gets next: queue, ranking, first order, id; leases, skips, and the ten-second rule."""

import sqlite3
from collections.abc import Callable
from typing import Final

from svgd_label.pool.database import Database
from svgd_label.pool.records import Proposal, Source

REPEAT_SECONDS: Final = 10.0
SKIP_SECONDS: Final = 24 * 3600.0

_COLUMNS = """
    SELECT i.image, i.queue_position, i.rank, i.first_position, r.version, r.score, r.entropy, r.mutual_information
"""
_PROPOSAL = f"{_COLUMNS} FROM images i LEFT JOIN ranking r ON r.image = i.image"
ALIVE: Final = "l.renewed > :expired AND l.renewed < :future"
"""Of a lease l, with the values of ``NextSample.limits``.

A clock that is put back a little takes an image from nobody; one put back by more than a lease must not lock it.
"""
_FREE = f"""
    AND NOT EXISTS (SELECT 1 FROM leases l WHERE l.image = i.image AND l.client <> :client AND {ALIVE})
"""
_NOT_SKIPPED = """
    AND NOT EXISTS (SELECT 1 FROM skips s WHERE s.image = i.image AND s.client = :client)
"""
# Each stage walks one index of open images from its beginning and stops at the first hit: the cost does not grow with
# the pool. INDEXED BY and CROSS JOIN say so to SQLite, which would otherwise walk over the labelled ones too.
_STAGES = (
    *(
        f"{_COLUMNS} FROM images i INDEXED BY {index} LEFT JOIN ranking r ON r.image = i.image "
        f"WHERE i.open = 1 AND i.{column} IS NOT NULL {_FREE} {_NOT_SKIPPED} ORDER BY i.{column} LIMIT 1"
        for column, index in (
            ("queue_position", "images_by_queue"),
            ("rank", "images_by_rank"),
            ("first_position", "images_by_first"),
            ("image", "images_by_id"),
        )
    ),
    f"""
    {_COLUMNS} FROM skips k CROSS JOIN images i ON i.image = k.image LEFT JOIN ranking r ON r.image = i.image
    WHERE k.client = :client AND i.open = 1 {_FREE} ORDER BY k.at, k.image LIMIT 1
    """,
)
_RANDOM = f"{_PROPOSAL} WHERE i.open = 1 {_FREE} {_NOT_SKIPPED} ORDER BY RANDOM() LIMIT 1"


class NextSample:
    """Leases and skips of the annotators. ``clock`` gives seconds, ``lease_seconds`` how long a lease lives."""

    def __init__(self, database: Database, lease_seconds: float, clock: Callable[[], float]) -> None:
        self._database = database
        self._lease_seconds = lease_seconds
        self._clock = clock

    def propose(self, client: str, *, random: bool = False) -> Proposal | None:
        """The best image, or any, that nobody else holds, now leased to ``client``; None where nothing is left."""
        with self._database.transaction() as connection:
            now = self._clock()  # not before: whoever wrote while this waited must not seem to come from the future
            current = self._current(connection, client)
            if current is not None:
                image, proposed = current
                if abs(now - proposed) < REPEAT_SECONDS:
                    connection.execute("UPDATE leases SET renewed = ? WHERE image = ?", (now, image))
                    row = connection.execute(f"{_PROPOSAL} WHERE i.image = ?", (image,)).fetchone()
                    return self._proposal(connection, row, random=random)
                connection.execute("DELETE FROM leases WHERE image = ?", (image,))
                connection.execute("INSERT OR REPLACE INTO skips VALUES (?, ?, ?)", (client, image, now))
            connection.execute("DELETE FROM skips WHERE client = ? AND at <= ?", (client, now - SKIP_SECONDS))
            values = {"client": client, **self.limits()}
            for stage in (_RANDOM, _STAGES[-1]) if random else _STAGES:
                row = connection.execute(stage, values).fetchone()
                if row is not None:
                    connection.execute(
                        "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?)", (row["image"], client, now, now)
                    )
                    return self._proposal(connection, row, random=random)
        return None

    def peek(self) -> Proposal | None:
        """What somebody who comes now for the first time would get; it is leased to nobody."""
        connection = self._database.connection
        for stage in _STAGES[:-1]:  # the last one is for those who have skipped something
            row = connection.execute(stage, {"client": "", **self.limits()}).fetchone()
            if row is not None:
                return self._proposal(connection, row, random=False)
        return None

    def limits(self) -> dict[str, float]:
        """Between which times, in seconds, a lease that is alive was last renewed."""
        now = self._clock()
        return {"expired": now - self._lease_seconds, "future": now + self._lease_seconds}

    def touch(self, image: str, client: str) -> bool:
        """Renews the client's lease, or takes one that nobody else holds; False where somebody does.

        An image that the client works on is no longer skipped for him.
        """
        with self._database.transaction() as connection:
            now = self._clock()
            lease = connection.execute("SELECT client, renewed FROM leases WHERE image = ?", (image,)).fetchone()
            if lease is not None and lease["client"] != client and abs(now - lease["renewed"]) < self._lease_seconds:
                return False
            if lease is not None and lease["client"] == client:
                connection.execute("UPDATE leases SET renewed = ? WHERE image = ?", (now, image))
            else:
                known = connection.execute("SELECT 1 FROM images WHERE image = ? AND open = 1", (image,)).fetchone()
                if known is None:
                    return False
                connection.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, NULL, ?)", (image, client, now))
            connection.execute("DELETE FROM skips WHERE client = ? AND image = ?", (client, image))
        return True

    def release(self, image: str) -> None:
        """Ends the image's lease, whoever holds it."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM leases WHERE image = ?", (image,))

    def leased(self) -> dict[str, str]:
        """Image -> client, of all leases that are alive."""
        rows = self._database.connection.execute(f"SELECT image, client FROM leases l WHERE {ALIVE}", self.limits())
        return {row["image"]: row["client"] for row in rows}

    def _current(self, connection: sqlite3.Connection, client: str) -> tuple[str, float] | None:
        """The image last proposed to the client and when, where it is still his and still open."""
        row = connection.execute(
            "SELECT l.image, l.proposed, i.open FROM leases l JOIN images i ON i.image = l.image "
            "WHERE l.client = ? AND l.proposed IS NOT NULL ORDER BY l.proposed DESC LIMIT 1",
            (client,),
        ).fetchone()
        return (row["image"], row["proposed"]) if row is not None and row["open"] else None

    def _proposal(self, connection: sqlite3.Connection, row: sqlite3.Row, *, random: bool) -> Proposal:
        version = row["version"]
        source: Source = "first"
        if random:
            source, why = "random", "Chosen at random among the unlabelled images that nobody else holds."
        elif row["queue_position"] is not None:
            last = "SELECT version, strategy FROM acquisitions ORDER BY step DESC LIMIT 1"
            step, strategy = connection.execute(last).fetchone()
            source = "queue"
            why = f"Picked for labelling by the strategy {strategy} with model version {step}{_measured(row)}."
        elif row["rank"] is not None:
            source = "ranking"
            why = f"The best image left in the ranking of model version {version}{_measured(row)}."
        elif row["first_position"] is not None:
            why = "No model has ranked it yet: next in an order that begins with images unlike each other."
        else:
            why = "No model has ranked it yet: images follow each other by name."
        return Proposal(
            image=row["image"],
            source=source,
            rank=row["rank"],
            score=row["score"],
            entropy=row["entropy"],
            mutual_information=row["mutual_information"],
            model_version=version,
            queue_position=row["queue_position"],
            why=why,
        )


def _measured(row: sqlite3.Row) -> str:
    """The numbers behind a place in the ranking, as the end of a sentence."""
    parts = [
        f"{name} {row[column]:.4g}"
        for name, column in (
            ("score", "score"),
            ("entropy", "entropy"),
            ("mutual information with the labelled images", "mutual_information"),
        )
        if row[column] is not None
    ]
    place = f", rank {row['rank']}" if row["rank"] is not None else ""
    return place + (f" ({', '.join(parts)})" if parts else "")
