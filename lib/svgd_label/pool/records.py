"""What the pool returns and takes: small frozen records."""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Source = Literal["queue", "ranking", "first", "random"]
Status = Literal["unlabelled", "leased", "labelled", "validation", "flagged", "unscorable"]
Column = Literal["rank", "image", "status", "frequency", "score", "entropy", "mutual_information"]


@dataclass(frozen=True)
class TrainingCase:
    """A labelled image and how often it stands in the training list."""

    image: str
    frequency: int


@dataclass(frozen=True, eq=False)
class ScoreRow:
    """What the committee of one version says of one image.

    Entropies, Jensen-Shannon divergence (``jsd``) in nats; ``variance`` over particles, summed over classes.
    ``details`` holds what is said of each class; ``features`` is one vector ``(F,)``.
    """

    image: str
    entropy: float
    expected_entropy: float
    jsd: float
    variance: float
    details: Mapping[str, Any] = field(default_factory=dict)
    features: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class RankingRow:
    """An image's place is its place in the list; a strategy without score, entropy or information leaves them None."""

    image: str
    score: float | None = None
    entropy: float | None = None
    mutual_information: float | None = None


@dataclass(frozen=True)
class Acquisition:
    """One active step: ``picks`` in order, of which ``annotated`` went to the queue and ``repeated`` gained one.

    ``scores`` holds why: score, entropy and mutual information of each pick at that moment, which the ranking loses
    with the next label or a new file. Empty for a step that was taken before they were kept.
    """

    step: int
    version: int
    at: float
    strategy: str
    picks: list[str]
    annotated: list[str]
    repeated: list[str]
    scores: dict[str, dict[str, float | None]]

    @classmethod
    def read(cls, row: sqlite3.Row) -> "Acquisition":
        """From a row of the table ``acquisitions``."""
        written = {name: json.loads(row[name]) for name in ("picks", "annotated", "repeated", "scores")}
        return cls(step=row["step"], version=row["version"], at=row["at"], strategy=row["strategy"], **written)


@dataclass(frozen=True)
class Proposal:
    """The next image for one annotator, and why; ``queue_position`` and ``rank`` count from 1."""

    image: str
    source: Source
    rank: int | None
    score: float | None
    entropy: float | None
    mutual_information: float | None
    model_version: int | None
    queue_position: int | None
    why: str


@dataclass(frozen=True)
class ImageRow:
    """One line of the table of images; ``why`` says who holds it, or what is wrong with it."""

    image: str
    fingerprint: str
    study: str | None
    """StudyInstanceUID, where the image comes from a DICOM server."""
    status: Status
    why: str | None
    frequency: int
    queue_position: int | None
    rank: int | None
    score: float | None
    entropy: float | None
    mutual_information: float | None
    coded: int
    """1 where it has grey-level codes, of which a small picture can be made; else 0."""


@dataclass(frozen=True)
class ProposedDice:
    """Dice between what one model version proposed and what annotators made of it, over so many saved labels."""

    labels: int
    mean: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Model:
    """A published model version."""

    version: int
    created: float
    metrics: dict[str, Any]
