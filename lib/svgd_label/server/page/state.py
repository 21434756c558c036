"""What the page shows, as one JSON object: the next image and why, training, learning curve, table, history."""

from dataclasses import asdict
from typing import Any

import numpy as np

from svgd_label.pool import PAGE, Column, Overview, Proposal, Status
from svgd_label.server.auto_train import AutoTrain, is_running
from svgd_label.server.trainer import SVGDTrainer

_VERSIONS = 200
_STEPS = 20


def next_image(overview: Overview) -> dict[str, Any] | None:
    """The image that the next annotator gets, with the reasons in words; None where nothing is left.

    It is not taken by looking at it.
    """
    proposal = overview.next_image()
    if proposal is None:
        return None
    row = overview.row(proposal.image)
    return {**asdict(row), "why": proposal.why, "words": _words(proposal, *overview.shares_below(proposal))}


def _words(proposal: Proposal, entropy: float | None, information: float | None) -> list[str]:
    """Where the image stands among the ranked ones, of which the shares have less entropy and information."""
    words = []
    if entropy is not None:
        words.append(f"The committee is surer about {_share(entropy)}.")
    if information is not None and proposal.mutual_information:  # which is 0 where nothing is labelled
        words.append(
            f"It is more like what has been labelled than {_share(information)}, which counts against it."
            if information
            else "No ranked image is less like what has been labelled."
        )
    return words


def _share(share: float) -> str:
    return "none of the ranked images" if share == 0 else f"{max(share, 0.01):.0%} of the ranked images"


def training(trainer: SVGDTrainer, auto_train: AutoTrain) -> dict[str, Any]:
    """How the running training, or else the last one, stands."""
    stats, running = trainer.stats(), is_running("train")
    status = stats.get("status", "never")
    if status in ("training", "scoring") and not running:
        status = "stopped"  # its number may be another process's by now
    pool = trainer.committees.pool
    if status == "stopped" and (pool.models.newest() or 0) >= stats["version"]:
        acquired = [step.version for step in pool.overview.acquisitions(1)]
        status = "done" if acquired and acquired[0] >= stats["version"] else "unscored"
    if running and status not in ("training", "scoring"):
        status = "starting"  # its process is still being loaded, and the statistics are the last training's
    shown = ("version", "step", "steps", "loss", "best_metric", "seconds_left", "ended", "error")
    return {
        **({} if status == "starting" else {key: stats[key] for key in shown if key in stats}),
        "status": status,
        "running": running,
        "scoring": is_running("scoring"),
        "every": auto_train.every,
        "new_labels": auto_train.new_labels(),
    }


def curve(overview: Overview) -> list[dict[str, Any]]:
    """For each model version, Dice with annotators' labels before it was trained on them, and on the validation set."""
    proposed = overview.proposed_dice()
    found = []
    for model in overview.models(_VERSIONS):
        known = [dice for dice in model.metrics.get("validation_dice") or () if dice is not None]
        found.append(
            {
                "version": model.version,
                "labelled": model.metrics.get("labelled"),
                "validation": float(np.mean(known)) if known else None,
                "proposed": asdict(proposed[model.version]) if model.version in proposed else None,
            }
        )
    return found


def table(
    overview: Overview, *, sort: Column, descending: bool, status: Status | None, search: str, page: int
) -> dict[str, Any]:
    """One page of the images, and how many there are; a page beyond the end is the last one."""
    counts = overview.counts(search)
    total = sum(counts.values()) if status is None else counts[status]
    pages = max(1, -(-total // PAGE))
    page = min(page, pages)
    rows = overview.rows(sort=sort, descending=descending, status=status, search=search, page=page)
    return {"counts": counts, "total": total, "page": page, "pages": pages, "rows": [asdict(row) for row in rows]}


def history(overview: Overview) -> list[dict[str, Any]]:
    """The last active steps, newest first."""
    return [asdict(step) for step in overview.acquisitions(_STEPS)]
