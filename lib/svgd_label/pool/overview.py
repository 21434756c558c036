"""What people want to see of a study: next image, table of all, Dice by model version, history. It only reads."""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final, get_args

from svgd_label.pool.database import Database
from svgd_label.pool.next_sample import ALIVE, NextSample
from svgd_label.pool.records import Acquisition, Column, ImageRow, Model, Proposal, ProposedDice, Status

PAGE: Final = 50
"""Rows on a page of the table."""
_STATUSES: Final = get_args(Status)

# Of several, the one that an annotator can do something about.
_STATUS = """
    CASE WHEN i.flagged IS NOT NULL THEN 'flagged' WHEN i.unusable IS NOT NULL THEN 'unscorable'
    WHEN i.labelled AND i.validation IS 1 THEN 'validation' WHEN i.labelled THEN 'labelled'
    WHEN l.client IS NOT NULL THEN 'leased' ELSE 'unlabelled' END
"""
# A label that is saved brings an info of its own, without this mark.
_IMAGE_CHANGED = """
    EXISTS (SELECT 1 FROM labels WHERE image = i.image AND tag = 'final' AND json_extract(info, '$.image_changed') = 1)
"""
IMAGE_CHANGED: Final = "its file has changed since its label was saved: look at the label again"
_FROM = f"""
    FROM images i LEFT JOIN ranking r ON r.image = i.image
    LEFT JOIN leases l ON l.image = i.image AND {ALIVE}
"""
_WHERE = "WHERE i.present = 1 AND (:search = '' OR instr(lower(i.image), lower(:search)))"
_ROW = f"""
    SELECT i.image, i.fingerprint, json_extract(i.info, '$.StudyInstanceUID') AS study, {_STATUS} AS status,
    COALESCE(i.flagged, i.unusable,
        CASE WHEN NOT i.labelled THEN l.client WHEN {_IMAGE_CHANGED} THEN '{IMAGE_CHANGED}' END) AS why, i.frequency,
    CASE WHEN i.open THEN i.queue_position END AS queue_position, i.rank, r.score, r.entropy, r.mutual_information,
    EXISTS (SELECT 1 FROM codes c WHERE c.image = i.image AND c.fingerprint = i.fingerprint) AS coded
    {_FROM} WHERE i.image = :image
"""


class Overview:
    """Read-only questions to the state store, each answered by SQL, so that 10,000 images stay quick."""

    def __init__(self, database: Database, next_sample: NextSample) -> None:
        self._database = database
        self._next = next_sample

    def next_image(self) -> Proposal | None:
        """What the next annotator would get; it is leased to nobody."""
        return self._next.peek()

    def counts(self, search: str = "") -> dict[str, int]:
        """Status -> how many images are in it, of those whose id contains ``search``, in capitals or not."""
        found = self._database.connection.execute(
            f"SELECT {_STATUS} AS status, COUNT(*) {_FROM} {_WHERE} GROUP BY status",
            {**self._next.limits(), "search": search},
        )
        return {**dict.fromkeys(_STATUSES, 0), **dict(found)}

    def rows(
        self,
        *,
        sort: Column = "rank",
        descending: bool = False,
        status: Status | None = None,
        search: str = "",
        page: int = 1,
    ) -> list[ImageRow]:
        """One page of the table; what has no value in the column stands last in either direction, then by id."""
        column = {"status": "status", "image": "i.image", "frequency": "i.frequency", "rank": "i.rank"}.get(sort, sort)
        values = {**self._next.limits(), "search": search, "status": status}
        connection = self._database.connection
        # The ids first: what is shown of 50 need not be read of 10,000.
        ids = connection.execute(
            f"SELECT i.image, {_STATUS} AS status {_FROM} {_WHERE} AND (:status IS NULL OR status = :status) "
            f"ORDER BY {column} IS NULL, {column} {'DESC' if descending else 'ASC'}, i.image "
            f"LIMIT {PAGE} OFFSET :offset",
            {**values, "offset": PAGE * (page - 1)},
        ).fetchall()
        return [self.row(row["image"]) for row in ids]

    def row(self, image: str) -> ImageRow:
        """One image's line of the table.

        Raises:
            KeyError: no such image.
        """
        row = self._database.connection.execute(_ROW, {**self._next.limits(), "image": image}).fetchone()
        if row is None:
            raise KeyError(image)
        return ImageRow(**dict(row))

    def shares_below(self, proposal: Proposal) -> tuple[float | None, float | None]:
        """Which shares of the ranked images have less entropy, and less mutual information, than one of them."""
        row = self._database.connection.execute(
            "SELECT AVG(entropy < ?), AVG(mutual_information < ?) FROM ranking",
            (proposal.entropy, proposal.mutual_information),
        ).fetchone()
        return row[0], row[1]

    def proposed_dice(self) -> dict[int, ProposedDice]:
        """Model version -> Dice of its proposals with the first labels of images it had not learnt from."""
        rows = self._database.connection.execute(
            "SELECT model_version, COUNT(*), AVG(dice), MIN(dice), MAX(dice) FROM label_versions v "
            "WHERE tag = 'final' AND dice IS NOT NULL AND model_version IS NOT NULL AND NOT EXISTS "
            "(SELECT 1 FROM label_versions e WHERE e.image = v.image AND e.tag = 'final' AND e.number < v.number) "
            "GROUP BY model_version"
        )
        return {version: ProposedDice(*values) for version, *values in rows}

    def models(self, last: int) -> list[Model]:
        """The last published versions, oldest first."""
        rows = self._database.connection.execute(
            "SELECT version, created, metrics FROM models ORDER BY version DESC LIMIT ?", (last,)
        ).fetchall()
        return [Model(row["version"], row["created"], json.loads(row["metrics"])) for row in reversed(rows)]

    def acquisitions(self, last: int) -> list[Acquisition]:
        """The last active steps, newest first."""
        rows = self._database.connection.execute("SELECT * FROM acquisitions ORDER BY step DESC LIMIT ?", (last,))
        return [Acquisition.read(row) for row in rows]

    def image_state(self, image: str) -> dict[str, Any]:
        """What the pool knows of one image; empty for an image that is not there."""
        return self.image_states([image]).get(image, {})

    def image_states(self, images: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
        """``image_state`` of some images, or of all."""
        leased = self._next.leased()
        select = (
            f"SELECT i.*, {_IMAGE_CHANGED} AS changed, r.version AS ranked_by, r.score, r.entropy, "
            "r.mutual_information FROM images i LEFT JOIN ranking r USING (image) WHERE i.present = 1"
        )
        rows: Iterable[sqlite3.Row]
        if images is None:
            rows = self._database.connection.execute(select)
        else:
            rows = [
                row
                for image in images
                for row in self._database.connection.execute(f"{select} AND i.image = ?", (image,))
            ]
        return {
            row["image"]: {
                "labelled": bool(row["labelled"]),
                "validation": bool(row["validation"]),
                "image_changed": bool(row["changed"]),
                "frequency": row["frequency"],
                "unusable": row["unusable"],
                "flagged": row["flagged"],
                "queue_position": row["queue_position"] if row["open"] else None,
                "rank": row["rank"],
                "first_position": row["first_position"],
                "score": row["score"],
                "entropy": row["entropy"],
                "mutual_information": row["mutual_information"],
                "model_version": row["ranked_by"],
                "leased_by": leased.get(row["image"]),
            }
            for row in rows
        }

    def labelled(self) -> int:
        """How many images have a final label."""
        return self._count("labelled = 1")

    def open(self) -> int:
        """How many images are still to be labelled."""
        return self._count("open = 1")

    def _count(self, where: str) -> int:
        found = self._database.connection.execute(f"SELECT COUNT(*) FROM images WHERE present = 1 AND {where}")
        return int(found.fetchone()[0])
