"""The ranking that follows from the stored scores, computed here from the formula and not by the package."""

import numpy as np
from numpy.typing import NDArray
from tests.e2e.server import Server

_POOL = """
    SELECT i.image, i.labelled, s.entropy FROM images i JOIN scores s USING (image, fingerprint)
    WHERE i.present AND i.unusable IS NULL AND i.flagged IS NULL AND i.validation IS NOT 1
    AND s.version = (SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'ranking_version') ORDER BY i.image
"""
_STORED = "SELECT i.image, r.score FROM images i JOIN ranking r USING (image) WHERE i.rank IS NOT NULL ORDER BY i.rank"


def is_right(server: Server) -> bool:
    """Whether the server's ranking is the one of the labels and scores that it has stored by now."""
    expected, stored = _expected(server), server.query(_STORED)
    return (
        expected is not None
        and [image for image, _ in expected] == [image for image, _ in stored]
        and np.allclose([score for _, score in expected], [score for _, score in stored], atol=1e-9)
    )


def _expected(server: Server) -> list[tuple[str, float]] | None:
    """norm(entropy) - norm(mean MI with the labelled others), best first; None while some information is missing."""
    rows = server.query(_POOL)
    pairs = {(image, partner): value for image, partner, value in server.query("SELECT * FROM mutual_information")}
    labelled = [image for image, is_labelled, _ in rows if is_labelled]
    information = []
    for image, _, _ in rows:
        partners = [pairs.get((image, partner)) for partner in labelled if partner != image]
        if not partners or any(value is None for value in partners):
            return None
        information.append(np.mean(partners))
    scores = _norm([entropy for _, _, entropy in rows]) - _norm(information)
    ranked = sorted(zip((image for image, _, _ in rows), scores.tolist(), strict=True), key=lambda x: (-x[1], x[0]))
    return ranked or None


def _norm(values: list[float]) -> NDArray[np.float64]:
    array = np.array(values, dtype=np.float64)
    span = np.ptp(array) if array.size else 0.0
    return (array - array.min()) / span if span > 0 else np.zeros_like(array)
