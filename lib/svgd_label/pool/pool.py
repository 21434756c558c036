"""The pool: what is labelled, how often it is trained on, what is ranked, who gets which image next."""

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal

from svgd_label.pool.database import Database
from svgd_label.pool.models import Models
from svgd_label.pool.next_sample import NextSample
from svgd_label.pool.overview import Overview
from svgd_label.pool.records import Acquisition, Proposal, RankingRow, TrainingCase
from svgd_label.pool.scores import Scores

VALIDATION_EVERY: Final = 5
VALIDATION_AT_MOST: Final = 20

_USABLE = "present = 1 AND unusable IS NULL AND flagged IS NULL"
_IN_POOL = f"{_USABLE} AND validation IS NOT 1"


class OutdatedVersion(RuntimeError):
    """A newer model version has ranked or acquired: the work of this one is of no use any more."""


class Pool(Scores):
    """State of active learning over the images of one studies folder.

    Args:
        database: the state store.
        validation: ``fifth`` keeps back each fifth image that is labelled, at most 20; ``none`` keeps none back.
        max_frequency: an image stands at most so often in the training list.
        lease_minutes: how long an image stays with a client after his last request for it.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        database: Database,
        *,
        validation: Literal["fifth", "none"],
        max_frequency: int,
        lease_minutes: float = 60.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(database)
        self._validation = validation
        self._max_frequency = max_frequency
        self._clock = clock
        self._next = NextSample(database, lease_minutes * 60.0, clock)
        self.models = Models(database, clock)
        self.overview = Overview(database, self._next)

    # Labels and frequencies

    def labels_found(self, images: Iterable[str]) -> None:
        """Labels that appeared together: validation is decided in the order of the ids."""
        with self.database.transaction():
            for image in sorted(images):
                self.label_saved(image)

    def label_saved(self, image: str) -> None:
        """A final label is there: decides validation once for ever, sets the first frequency, ends the lease.

        A correction of a label that is already there changes neither.
        """
        with self.database.transaction() as connection:
            row = connection.execute(
                "SELECT labelled, decided, validation FROM images WHERE image = ?", (image,)
            ).fetchone()
            if row is None:
                raise KeyError(image)
            validation = bool(row["validation"])
            if row["decided"] is None:
                validation = self._decide(connection, image)
            if not row["labelled"]:
                connection.execute(
                    "UPDATE images SET labelled = 1, frequency = ? WHERE image = ?", (0 if validation else 1, image)
                )
            self._next.release(image)

    def label_removed(self, image: str) -> None:
        """The final label is gone: frequency 0; the decision on validation stays."""
        with self.database.transaction() as connection:
            connection.execute("UPDATE images SET labelled = 0, frequency = 0 WHERE image = ?", (image,))

    def training_list(self) -> list[TrainingCase]:
        """Labelled images that are not kept back for validation, by id, with their frequencies."""
        rows = self.database.connection.execute(
            f"SELECT image, frequency FROM images WHERE labelled = 1 AND frequency > 0 AND {_IN_POOL} ORDER BY image"
        )
        return [TrainingCase(row["image"], row["frequency"]) for row in rows]

    def validation_list(self) -> list[str]:
        """Labelled images that are kept back, by id."""
        return self._images(f"labelled = 1 AND validation = 1 AND {_USABLE}")

    def pool_images(self) -> list[str]:
        """All images that are scored: usable, unflagged, not kept back for validation; by id."""
        return self._images(_IN_POOL)

    def labelled(self) -> list[str]:
        """T: the labelled images of the pool, by id."""
        return self._images(f"labelled = 1 AND {_IN_POOL}")

    def inferred(self, image: str, version: int) -> None:
        """Notes which version made the pre-segmentation that an annotator is correcting."""
        self._update(image, "inferred_version", version)

    # What stands outside

    def mark_unusable(self, image: str, reason: str, *, fingerprint: str | None = None) -> None:
        """Takes an image out until a new file or other settings; not where its file is not the ``fingerprint`` read."""
        with self.database.transaction() as connection:
            row = connection.execute("SELECT fingerprint FROM images WHERE image = ?", (image,)).fetchone()
            if row is None or fingerprint in (None, row["fingerprint"]):
                self._update(image, "unusable", reason)

    def unusable(self) -> dict[str, str]:
        """Images that cannot be used, with the reason."""
        rows = self.database.connection.execute(
            "SELECT image, unusable FROM images WHERE present = 1 AND unusable IS NOT NULL ORDER BY image"
        )
        return {row["image"]: row["unusable"] for row in rows}

    def flag(self, image: str, reason: str | None) -> None:
        """An annotator's flag: the image stays out until the flag is undone with None."""
        self._update(image, "flagged", reason)
        if reason is not None:
            self._next.release(image)

    # Ranking and acquisition

    def ranking_version(self) -> int | None:
        """Model version of the present ranking; None where there is none."""
        value = self.database.get("ranking_version")
        return None if value is None else int(value)

    def ranking(self) -> list[RankingRow]:
        """The present ranking, best first."""
        rows = self.database.connection.execute(
            "SELECT i.image, r.score, r.entropy, r.mutual_information FROM images i JOIN ranking r USING (image) "
            "WHERE i.rank IS NOT NULL ORDER BY i.rank"
        )
        return [RankingRow(*row) for row in rows]

    def replace_ranking(self, version: int, rows: Sequence[RankingRow]) -> None:
        """Puts a ranking, best first, in place of the old one; the queue stays. Older versions' scores are dropped.

        Raises:
            OutdatedVersion: the present ranking is of a newer version.
        """
        with self.database.transaction() as connection:
            present = self.ranking_version()
            if present is not None and present > version:
                raise OutdatedVersion(f"a ranking of version {present} is there; the one of {version} is too old")
            connection.execute("DELETE FROM ranking")
            connection.execute("UPDATE images SET rank = NULL WHERE rank IS NOT NULL")
            connection.executemany(
                "INSERT INTO ranking VALUES (?, ?, ?, ?, ?)",
                [(row.image, version, row.score, row.entropy, row.mutual_information) for row in rows],
            )
            connection.executemany(
                "UPDATE images SET rank = ? WHERE image = ?", [(rank, row.image) for rank, row in enumerate(rows, 1)]
            )
            connection.execute("DELETE FROM scores WHERE version < ?", (version,))
            self.database.set("ranking_version", str(version))

    def limited(self, version: int, limited: bool) -> None:
        """Notes that a version has scored a subset only, and that this is all it is going to score."""
        self.database.set("limited_version", str(version) if limited else "")

    def is_limited(self, version: int) -> bool:
        """What ``limited`` noted of a version."""
        return self.database.get("limited_version") == str(version)

    def acquire(self, version: int, strategy: str, queries: int, *, repeat: float = 1.0) -> Acquisition:
        """One active step over the ranking: labelled picks gain one in frequency, the others become the queue.

        A second call for one version changes nothing and returns what the first did.
        docs/method.md: "one active step".

        Args:
            version: the model version whose ranking is in place.
            strategy: name that goes into the history.
            queries: number of images to pick.
            repeat: the share of the picks that labelled images may have, rounded down; those beyond it are passed over.

        Raises:
            OutdatedVersion: a newer version has acquired, or the ranking in place is another version's.
        """
        with self.database.transaction() as connection:
            done = connection.execute("SELECT * FROM acquisitions WHERE version = ?", (version,)).fetchone()
            if done is not None:
                return Acquisition.read(done)
            last = connection.execute("SELECT MAX(version) AS version FROM acquisitions").fetchone()["version"]
            if last is not None and last > version:
                raise OutdatedVersion(f"version {last} has acquired; {version} is too old")
            if self.ranking_version() != version:
                raise OutdatedVersion(f"the ranking is of version {self.ranking_version()}, not of {version}")
            ranked = connection.execute(
                "SELECT image, labelled, score, entropy, mutual_information "
                f"FROM images LEFT JOIN ranking USING (image) WHERE rank IS NOT NULL AND {_IN_POOL} "
                "AND (labelled = 0 OR frequency < ?) ORDER BY rank",
                (self._max_frequency,),
            )
            chosen: list[sqlite3.Row] = []
            repeats = int(repeat * queries)
            for row in ranked:
                if len(chosen) == queries:
                    break
                if row["labelled"]:
                    if not repeats:
                        continue
                    repeats -= 1
                chosen.append(row)
            annotated = [row["image"] for row in chosen if not row["labelled"]]
            repeated = [row["image"] for row in chosen if row["labelled"]]
            connection.executemany(
                "UPDATE images SET frequency = frequency + 1 WHERE image = ?", [(image,) for image in repeated]
            )
            connection.execute("UPDATE images SET queue_position = NULL WHERE queue_position IS NOT NULL")
            connection.executemany(
                "UPDATE images SET queue_position = ? WHERE image = ?",
                [(position, image) for position, image in enumerate(annotated, 1)],
            )
            scores = {
                row["image"]: {key: row[key] for key in ("score", "entropy", "mutual_information")} for row in chosen
            }
            written = [json.dumps(x) for x in (list(scores), annotated, repeated, scores)]
            connection.execute(
                "INSERT INTO acquisitions VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)",
                (version, self._clock(), strategy, *written),
            )
            return Acquisition.read(
                connection.execute("SELECT * FROM acquisitions WHERE version = ?", (version,)).fetchone()
            )

    def acquisitions(self) -> list[Acquisition]:
        """The history of active steps, oldest first."""
        return [
            Acquisition.read(row)
            for row in self.database.connection.execute("SELECT * FROM acquisitions ORDER BY step")
        ]

    def queue(self) -> list[str]:
        """The last step's picks that are still to be labelled, in order."""
        rows = self.database.connection.execute(
            "SELECT image FROM images WHERE open = 1 AND queue_position IS NOT NULL ORDER BY queue_position"
        )
        return [row["image"] for row in rows]

    # Annotators

    def next_image(self, client: str) -> Proposal | None:
        """The next image for a client, leased to him: queue, ranking, first order, id; None where nothing is left.

        Asked again within 10 s it is the same image; later, that image is skipped for this client for a day, and
        comes back, the oldest skip first, when nothing else is left.
        """
        return self._next.propose(client)

    def random_image(self, client: str) -> Proposal | None:
        """As ``next_image``, but any image, each as likely as the other."""
        return self._next.propose(client, random=True)

    def touch(self, image: str, client: str) -> bool:
        """Renews a client's lease, or gives him one of an image that nobody else holds; False where somebody does."""
        return self._next.touch(image, client)

    def release(self, image: str) -> None:
        """Ends an image's lease."""
        self._next.release(image)

    def write_first_order(self, images: Sequence[str]) -> None:
        """The order in which images are proposed before anything is ranked."""
        with self.database.transaction() as connection:
            connection.execute("UPDATE images SET first_position = NULL WHERE first_position IS NOT NULL")
            connection.executemany(
                "UPDATE images SET first_position = ? WHERE image = ?",
                [(position, image) for position, image in enumerate(images, 1)],
            )

    def _decide(self, connection: sqlite3.Connection, image: str) -> bool:
        number = connection.execute("SELECT MAX(decided) AS last FROM images WHERE decided IS NOT NULL").fetchone()[
            "last"
        ]
        number = 1 if number is None else number + 1
        kept = connection.execute("SELECT COUNT(*) AS kept FROM images WHERE validation = 1").fetchone()["kept"]
        validation = self._validation == "fifth" and number % VALIDATION_EVERY == 0 and kept < VALIDATION_AT_MOST
        connection.execute(
            "UPDATE images SET decided = ?, validation = ? WHERE image = ?", (number, int(validation), image)
        )
        return validation

    def _images(self, where: str) -> list[str]:
        rows = self.database.connection.execute(f"SELECT image FROM images WHERE {where} ORDER BY image")
        return [row["image"] for row in rows]

    def _update(self, image: str, column: str, value: str | int | None) -> None:
        with self.database.transaction() as connection:
            done = connection.execute(f"UPDATE images SET {column} = ? WHERE image = ?", (value, image))
            if done.rowcount == 0:
                raise KeyError(image)
