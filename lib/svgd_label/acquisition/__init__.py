"""Query strategies: one file each, pure functions of what is known of the pool, and the registry of their names."""

import numpy as np

from svgd_label.acquisition import (
    clasp_pe,
    coreset,
    entropy,
    entropy_mi,
    expected_entropy,
    jsd,
    max_cover,
    power_noise,
    random,
    random_foreground,
)
from svgd_label.acquisition.candidates import Candidates, QueryStrategy, gumbel_noise
from svgd_label.errors import UserError

__all__ = ["ALIASES", "STRATEGIES", "Candidates", "QueryStrategy", "gumbel_noise", "rank", "strategy"]

_MODULES = (
    entropy_mi,
    entropy,
    expected_entropy,
    jsd,
    max_cover,
    clasp_pe,
    power_noise,
    coreset,
    random,
    random_foreground,
)
STRATEGIES: dict[str, QueryStrategy] = {entry.name: entry for module in _MODULES for entry in module.STRATEGIES}
ALIASES = {"bald": "jsd"}


class StrategyError(UserError):
    """A query strategy that does not exist."""


def strategy(name: str) -> QueryStrategy:
    """A strategy by its name or alias.

    Raises:
        StrategyError: there is none of that name.
    """
    found = STRATEGIES.get(ALIASES.get(name, name))
    if found is None:
        raise StrategyError(f"there is no query strategy {name!r}; known are {', '.join([*STRATEGIES, *ALIASES])}")
    return found


def rank(chosen: QueryStrategy, candidates: Candidates) -> list[tuple[str, float]]:
    """(image, score) of all candidates that the strategy keeps, best first, ties by id.

    Raises:
        ValueError: a column holds NaN or infinite values, of which a single one would change every image's place.
    """
    for name, column in candidates.columns().items():
        if not np.isfinite(column).all():
            raise ValueError(f"the images cannot be ranked: their {name} holds NaN or infinite values")
    by_id = np.array(sorted(range(len(candidates)), key=candidates.images.__getitem__), dtype=np.intp)
    labelled = candidates.labelled[by_id]
    pool = candidates.select(by_id if chosen.repeat else by_id[~labelled])
    if len(pool) == 0:
        return []
    scores = chosen.score(pool, candidates.select(by_id[labelled]))
    return [(pool.images[row], float(scores[row])) for row in np.argsort(-scores, kind="stable")]
