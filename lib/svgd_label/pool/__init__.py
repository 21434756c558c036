"""The pool: state of the active learning and index of images and labels, in one SQLite file."""

from svgd_label.pool.database import Database, StateError, on_network
from svgd_label.pool.label_store import LabelStore, LabelVersion
from svgd_label.pool.overview import PAGE, Overview
from svgd_label.pool.pool import OutdatedVersion, Pool
from svgd_label.pool.records import (
    Acquisition,
    Column,
    ImageRow,
    Model,
    Proposal,
    ProposedDice,
    RankingRow,
    ScoreRow,
    Status,
    TrainingCase,
)
from svgd_label.pool.studies import FINAL, ORIGINAL, Studies

__all__ = [
    "FINAL",
    "ORIGINAL",
    "PAGE",
    "Acquisition",
    "Column",
    "Database",
    "ImageRow",
    "LabelStore",
    "LabelVersion",
    "Model",
    "OutdatedVersion",
    "Overview",
    "Pool",
    "Proposal",
    "ProposedDice",
    "RankingRow",
    "ScoreRow",
    "StateError",
    "Status",
    "Studies",
    "TrainingCase",
    "on_network",
]
