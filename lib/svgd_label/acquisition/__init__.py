"""Query strategies: one file each, pure functions of scores, and the registry of their names."""

import numpy as np

from svgd_label.acquisition import entropy, entropy_mi, expected_entropy, jsd, random
from svgd_label.acquisition.candidates import Candidates, QueryStrategy
from svgd_label.errors import UserError

__all__ = ["ALIASES", "STRATEGIES", "Candidates", "QueryStrategy", "rank", "strategy"]

STRATEGIES: dict[str, QueryStrategy] = {
    entry.name: entry for module in (entropy_mi, entropy, expected_entropy, jsd, random) for entry in module.STRATEGIES
}
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


def rank(chosen: QueryStrategy, candidates: Candidates, rng: np.random.Generator) -> list[tuple[str, float]]:
    """(image, score) of all candidates that the strategy keeps, best first, ties by id."""
    if not chosen.keeps_labelled:
        candidates = candidates.select(~candidates.labelled)
    if len(candidates) == 0:
        return []
    scores = chosen.score(candidates, rng)
    order = sorted(range(len(candidates)), key=lambda i: (-scores[i], candidates.images[i]))
    return [(candidates.images[i], float(scores[i])) for i in order]
