"""The scoring method ``entropy_mi``: scores what the newest committee has not scored yet, ranks, acquires."""

import logging
from typing import Any

import torch
from fastapi import HTTPException
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod

from svgd_label import acquisition
from svgd_label.active_step import ScoringResult, score_pool
from svgd_label.device import default_device
from svgd_label.pool import Pool
from svgd_label.server.committees import Committees
from svgd_label.server.conf import Conf

logger = logging.getLogger(__name__)

TOLERATED = 0.1
"""Of the images, so many may be away when picks are made: one that can never be read must not end it all."""


class EntropyMI(ScoringMethod):  # type: ignore[misc]
    """Entropy of the committee and mutual information with the labelled images, for the whole pool."""

    def __init__(self, committees: Committees, conf: Conf) -> None:
        super().__init__("Committee entropy and mutual information with the labelled images")
        self.committees, self.conf = committees, conf

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Scores the pool for the newest model version; once more for the same version it changes no pick.

        Raises:
            HTTPException: 409 where there is no committee yet.
        """
        current = self.committees.read_newest()
        if current is None:
            raise HTTPException(409, "there is no trained committee yet, so nothing can be scored: train first")
        pool = self.committees.pool
        result = score_pool(
            pool,
            self.committees.task,
            current.committee,
            paths(datastore, pool),
            version=current.version,
            strategy=acquisition.strategy(self.conf.strategy),
            seed=self.conf.seed,
            limit=scoring_limit(self.conf, default_device()),
            tolerated=TOLERATED,
            on_progress=lambda done, total: logger.info("scored %d of %d images", done, total),
        )
        return log_scoring(pool, result)


def paths(datastore: Datastore, pool: Pool) -> dict[str, str]:
    """Where each image of the pool is read from."""
    return {image: datastore.get_image_uri(image) for image in pool.pool_images()}


def scoring_limit(conf: Conf, device: torch.device) -> int | None:
    """How many unlabelled images are scored at most: all of them where there is a GPU."""
    return conf.scoring_limit if device.type == "cpu" else None


def log_scoring(pool: Pool, result: ScoringResult) -> dict[str, Any]:
    """Says what a scoring run did, and which images cannot be used, in the log and as JSON."""
    step = result.acquisition
    answer = {
        "model_version": result.version,
        "scored": result.scored,
        "pool": result.pool,
        "limited": result.limited,
        "unusable": {**pool.unusable(), **result.unusable},
        "picks": step.picks if step else None,
        "to_label": step.annotated if step else None,
        "repeated": step.repeated if step else None,
    }
    logger.info("scoring: %s", answer)
    return answer
