"""The strategy ``svgd``: reads the next image from the pool's queue and ranking, never computes."""

from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from svgd_label.pool import Pool, Proposal


class SVGDStrategy(Strategy):  # type: ignore[misc]
    """The image that is worth labelling most and that nobody else holds."""

    def __init__(self, pool: Pool, acquisition: str) -> None:
        super().__init__(f"Most informative image next ({acquisition})")
        self.pool = pool

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """The proposal with its reasons; None, which MONAI Label answers with {}, where nothing is left."""
        return _answer(self.pool.next_image(_client(request)))


class RandomStrategy(Strategy):  # type: ignore[misc]
    """Any unlabelled image that nobody else holds: MONAI Label's own would propose flagged and broken ones too."""

    def __init__(self, pool: Pool) -> None:
        super().__init__("Random image next")
        self.pool = pool

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """As the strategy ``svgd``, in a random order."""
        return _answer(self.pool.random_image(_client(request)))


def _client(request: dict[str, Any]) -> str:
    return str(request.get("client_id") or "anonymous")


def _answer(proposal: Proposal | None) -> dict[str, Any] | None:
    if proposal is None:
        return None
    return {
        "id": proposal.image,
        "from": proposal.source,
        "why": proposal.why,
        "rank": proposal.rank,
        "score": proposal.score,
        "entropy": proposal.entropy,
        "mutual_information": proposal.mutual_information,
        "model_version": proposal.model_version,
        "queue_position": proposal.queue_position,
    }
