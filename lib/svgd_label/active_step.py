"""One active step over the pool: score what is new, compare with the labelled, rank, acquire."""

import contextlib
import copy
import logging
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from svgd_label import acquisition, similarity
from svgd_label.acquisition import Candidates, QueryStrategy
from svgd_label.acquisition.diverse import farthest_first
from svgd_label.device import default_device
from svgd_label.images import ImageError
from svgd_label.memory import MemoryRoom
from svgd_label.pool import Acquisition, OutdatedVersion, Pool, RankingRow, ScoreRow
from svgd_label.scoring import PreparedImage, bytes_to_prepare, bytes_to_score, mi_shape, prepare, score
from svgd_label.svgd import Committee
from svgd_label.tasks import Task

logger = logging.getLogger(__name__)

_AT_ONCE, _LARGE_AT_ONCE = 4, 2
"""Images that are read and scored at a time, of which each takes memory: those of a window, and those of many."""
_BLOCK = 256
"""Images that are compared with the labelled ones at a time: their codes are in memory."""


@dataclass
class ScoringResult:
    """What a scoring run did; ``unusable`` maps ids to the reason, ``acquisition`` is None for an outdated run."""

    version: int
    scored: int = 0
    pool: int = 0
    unusable: dict[str, str] = field(default_factory=dict)
    acquisition: Acquisition | None = None
    limited: bool = False
    """Whether only a random subset was scored, because the pool is larger than the limit."""


def score_pool(
    pool: Pool,
    task: Task,
    committee: Committee,
    paths: Mapping[str, str],
    *,
    version: int,
    strategy: QueryStrategy,
    seed: int,
    limit: int | None = None,
    tolerated: float = 0.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> ScoringResult:
    """Scores what is not scored yet, then ranks the pool and takes the version's one active step.

    Rows are written as they come, so a killed run goes on where it was; a newer model version ends an older run. A
    second run for one version changes no pick.

    Args:
        paths: where each image of the pool is read from.
        version: the model version that ``committee`` is.
        seed: of random strategies, and of the subset where ``limit`` strikes.
        limit: at most so many unlabelled images are scored; None for all.
        tolerated: the share of the images that may be away for the moment; where it is more, nothing is picked, as a
            version picks once and those away would have no part in it.
        on_progress: called with (done, of how many).
    """
    settle(pool, task)
    result = ScoringResult(version)
    fingerprints = pool.fingerprints()
    done = pool.scored_images(version)
    subset = _subset(pool, version, limit, seed)
    limited = len(subset) < len(pool.pool_images())
    todo = [image for image in subset if image not in done]
    with_codes, passing, away = pool.coded_images(), 0, 0
    with contextlib.closing(_score(task, committee, todo, paths)) as found:
        for number, (image, scored) in enumerate(found, start=1):
            if (newest := pool.models.newest()) is not None and newest > version:
                logger.info("scoring for version %d ends: version %d is there", version, newest)
                return result
            if isinstance(scored, ImageError):
                logger.warning("cannot be scored: %s", scored)
                result.unusable[image] = str(scored)
                passing += scored.passing
                away += scored.passing and not isinstance(scored, _NotFiniteError)
                _mark(pool, image, scored, fingerprints.get(image))
            else:
                row, codes = scored
                if image not in with_codes:
                    pool.write_codes({image: codes}, fingerprints)
                pool.write_score(version, row, fingerprint=fingerprints.get(image))
                result.scored += 1
            if on_progress is not None:
                on_progress(number, len(todo))
    if todo and passing == len(todo) and not done:
        # As where memory is short, or the committee answers NaN: the ranking and the picks that are there stay.
        logger.error("version %d has scored no image: nothing is ranked and nothing picked", version)
        return result
    result.limited = limited
    pool.limited(version, limited)
    try:
        ranking = refresh_ranking(pool, task, version=version, strategy=strategy, seed=seed)
        result.pool = len(ranking)
        if away > tolerated * len(subset):
            logger.error("%d of %d images cannot be scored at present: nothing is picked yet", away, len(subset))
            return result
        result.acquisition = pool.acquire(version, strategy.name, task.queries, repeat=strategy.repeat)
    except OutdatedVersion as error:  # another run, for a newer version, has ranked in between
        logger.info("scoring for version %d ends: %s", version, error)
    return result


def settle(pool: Pool, task: Task) -> None:
    """Drops scores and codes that were made with other settings of the task than it has now."""
    pool.made_with(task.model_dump_json(include={"spacing", "window", "intensity", "aggregate", "mi_grid", "mi_bins"}))


def refresh_ranking(
    pool: Pool, task: Task, *, version: int, strategy: QueryStrategy, seed: int
) -> list[tuple[str, float]]:
    """Ranks the scored images of a version anew, with mutual information computed for new pairs only; picks nothing.

    Returns:
        (image, score), best first.
    """
    rows = {row.image: row for row in pool.scores(version)}
    usable = [image for image in pool.pool_images() if image in rows]
    labelled = [image for image in pool.labelled() if image in rows]
    compare(pool, task, usable, labelled)
    information = pool.labelled_information(usable, labelled, over=task.mi_over)
    in_t, found = set(labelled), [rows[image] for image in usable]
    steps = sum(step.version < version for step in pool.acquisitions())
    candidates = Candidates(
        images=tuple(usable),
        labelled=np.array([image in in_t for image in usable], dtype=np.bool_),
        entropy=np.array([row.entropy for row in found]),
        expected_entropy=np.array([row.expected_entropy for row in found]),
        jsd=np.array([row.jsd for row in found]),
        mutual_information=information,
        class_entropy=_by_class(task, found, "class_entropy"),
        volumes=_by_class(task, found, "volume_voxels"),
        features=_features(found),
        gumbel=acquisition.gumbel_noise(usable, task.classes, strategy=strategy.name, seed=seed, version=version),
        alpha=task.alpha,
        queries=task.queries,
        progress=min(1.0, steps / max(1, task.clasp_steps - 1)),
    )
    ranking = acquisition.rank(strategy, candidates)
    value = dict(zip(usable, information.tolist(), strict=True))
    pool.replace_ranking(
        version, [RankingRow(image, score, rows[image].entropy, value[image]) for image, score in ranking]
    )
    return ranking


def write_first_order(
    pool: Pool, task: Task, paths: Mapping[str, str], *, seed: int = 0, limit: int | None = None
) -> None:
    """Computes the diverse order that serves before anything is scored; images that cannot be used are marked.

    Args:
        paths, seed, limit: as for :func:`score_pool`.
    """
    images = _subset(pool, 0, limit, seed)
    codes, fingerprints, room = pool.codes(images), pool.fingerprints(), MemoryRoom()
    for image in [image for image in images if image not in codes]:
        prepared = _read(task, image, paths, room)
        if isinstance(prepared, ImageError):
            logger.warning("cannot be used: %s", prepared)
            _mark(pool, image, prepared, fingerprints.get(image))
        else:
            codes[image] = prepared.codes
            pool.write_codes({image: prepared.codes}, fingerprints)
    usable = [image for image in images if image in codes]
    features = np.array([_thumbnail(task, codes[image]) for image in usable])
    pool.write_first_order([usable[index] for index in farthest_first(features)])


def _by_class(task: Task, rows: Sequence[ScoreRow], key: str) -> NDArray[np.float64]:
    """(N, C); a structure that the task did not have yet when the row was written counts 0."""
    values = [[row.details.get(key, {}).get(name, 0.0) for name in task.labels] for row in rows]
    return np.array(values, dtype=np.float64).reshape(len(rows), len(task.labels))


def _features(rows: Sequence[ScoreRow]) -> NDArray[np.float64]:
    """(N, F); an image whose row has none stands at the others' mean, neither near nor far."""
    known = [row.features for row in rows if row.features is not None]
    mean = np.mean(known, axis=0) if known else np.zeros(0)
    values = [mean if row.features is None else row.features for row in rows]
    return np.array(values, dtype=np.float64).reshape(len(rows), len(mean))


def _thumbnail(task: Task, codes: NDArray[np.uint8]) -> NDArray[np.float64]:
    """An image at 8 x 8 x 8, flat: enough to tell two apart before a network can."""
    grid = torch.from_numpy(codes.astype(np.float64)).reshape(1, *mi_shape(task))
    thumbnail: NDArray[np.float64] = torch.nn.functional.adaptive_avg_pool3d(grid, 8).flatten().numpy()
    return thumbnail


def _subset(pool: Pool, version: int, limit: int | None, seed: int) -> list[str]:
    images = pool.pool_images()
    labelled = set(pool.labelled())
    unlabelled = [image for image in images if image not in labelled]
    if limit is None or len(unlabelled) <= limit:
        return images
    logger.warning("%d images: a random %d of them are taken", len(unlabelled), limit)
    chosen = np.random.default_rng([seed, version]).choice(len(unlabelled), size=limit, replace=False)
    return sorted([*labelled, *(unlabelled[index] for index in chosen)])


def _score(
    task: Task, committee: Committee, images: Sequence[str], paths: Mapping[str, str]
) -> Generator[tuple[str, tuple[ScoreRow, NDArray[np.uint8]] | ImageError], None, None]:
    """Scores and grey-level codes of each image, in order; several are read and scored at a time.

    On a CPU each has cores of its own: faster than all cores for one image after the other (``bench scoring``).
    On a GPU one is scored at a time, while others are read.
    """
    threads = torch.get_num_threads()
    on_cpu = next(committee.parameters()).device.type == "cpu"
    workers = min(threads, _LARGE_AT_ONCE if task.patches else _AT_ONCE) if on_cpu else _LARGE_AT_ONCE
    room = MemoryRoom()
    computing = threading.Lock()
    own = threading.local()

    def start() -> None:
        own.committee = copy.deepcopy(committee)  # whose hooks are its own
        if on_cpu:
            torch.set_num_threads(max(1, threads // workers))

    def one(image: str) -> tuple[str, tuple[ScoreRow, NDArray[np.uint8]] | ImageError]:
        prepared = _read(task, image, paths, room)
        if isinstance(prepared, ImageError):
            return image, prepared
        try:
            with room.of(image, bytes_to_score(task, prepared)) if on_cpu else computing:
                row = score(task, own.committee, prepared)
            return image, (_finite(row), prepared.codes)
        except ImageError as error:
            return image, error
        except Exception as error:  # as where the device's memory is full: the others are scored all the same
            logger.exception("%s cannot be scored", image)
            return image, ImageError(f"{image}: cannot be scored ({type(error).__name__}), see the log", passing=True)

    executor = ThreadPoolExecutor(workers, initializer=start)
    try:
        yield from executor.map(one, images)
    finally:
        executor.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _read(task: Task, image: str, paths: Mapping[str, str], room: MemoryRoom) -> PreparedImage | ImageError:
    if not paths.get(image):  # it came, or went, since the paths were asked for
        return ImageError(f"{image}: was not there when its turn came", passing=True)
    try:
        with room.of(image, bytes_to_prepare(paths[image])):
            return prepare(task, image, paths[image])
    except ImageError as error:
        return error
    except Exception as error:
        logger.exception("%s cannot be read", image)
        return ImageError(f"{image}: cannot be read ({type(error).__name__}), see the log", passing=True)


class _NotFiniteError(ImageError):
    """This committee's fault: the image is not away, and waiting would not help."""


def _finite(row: ScoreRow) -> ScoreRow:
    """The row, where all of its numbers are finite: a single one that is not would spoil the whole ranking.

    The fault is this committee's, so the image comes back with the next one.
    """
    values = [row.entropy, row.expected_entropy, row.jsd, row.variance, *row.details["class_entropy"].values()]
    if not (np.isfinite(values).all() and (row.features is None or np.isfinite(row.features).all())):
        raise _NotFiniteError(
            f"{row.image}: the network's answer holds NaN or infinite values, so it cannot be ranked", passing=True
        )
    return row


def _mark(pool: Pool, image: str, error: ImageError, fingerprint: str | None) -> None:
    """Takes an image out for good where its file is at fault; one that is only away for the moment comes back."""
    if error.passing:
        return
    with contextlib.suppress(KeyError):  # it was deleted meanwhile
        pool.mark_unusable(image, str(error), fingerprint=fingerprint)


def compare(pool: Pool, task: Task, images: Sequence[str], labelled: Sequence[str]) -> None:
    """Computes and stores the mutual information of every image with every labelled one, where it is missing."""
    partners = pool.partners_to_compare(images, labelled)
    if not partners:
        return
    pool.mirror_mutual_information(partners, labelled)
    fingerprints = pool.fingerprints()
    device = default_device()
    for start in range(0, len(images), _BLOCK):
        block = images[start : start + _BLOCK]
        missing = pool.missing_pairs(block, partners)
        if not missing.any():
            continue
        codes = pool.codes([block[row] for row in np.flatnonzero(missing.any(axis=1))])
        codes |= pool.codes([partners[column] for column in np.flatnonzero(missing.any(axis=0))])
        rows, columns = ([index for index, image in enumerate(ids) if image in codes] for ids in (block, partners))
        values = similarity.mutual_information_matrix(
            [codes[block[row]] for row in rows],
            [codes[partners[column]] for column in columns],
            bins=task.mi_bins,
            wanted=missing[np.ix_(rows, columns)],
            device=device if device.type == "cuda" else None,
        )
        found = np.argwhere(~np.isnan(values)).tolist()
        pool.write_mutual_information(
            ((block[rows[i]], partners[columns[j]], float(values[i, j])) for i, j in found), fingerprints
        )
    pool.mirror_mutual_information(partners, labelled)
