"""The pool: state of the active learning and index of images and labels, in one SQLite file."""

from svgd_label.pool.database import Database, StateError, on_network
from svgd_label.pool.label_store import LabelStore, LabelVersion
from svgd_label.pool.pool import OutdatedVersion, Pool
from svgd_label.pool.records import Acquisition, Proposal, RankingRow, ScoreRow, Summary, TrainingCase
from svgd_label.pool.studies import FINAL, ORIGINAL, Studies

__all__ = [
    "FINAL",
    "ORIGINAL",
    "Acquisition",
    "Database",
    "LabelStore",
    "LabelVersion",
    "OutdatedVersion",
    "Pool",
    "Proposal",
    "RankingRow",
    "ScoreRow",
    "StateError",
    "Studies",
    "Summary",
    "TrainingCase",
    "on_network",
]
