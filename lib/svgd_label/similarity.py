"""Mutual information between images from joint grey-level histograms: one pair, or many images with many partners."""

import functools
import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

BINS = 64
_SIDE_BY_SIDE = 4
_CHUNK = 2048
_BLOCK_CELLS = 1 << 22

Codes = NDArray[np.uint8]
Vector = NDArray[np.float64]
Indices = NDArray[np.intp]
Result = TypeVar("Result")


def codes(x: ArrayLike, *, bins: int = BINS) -> Codes:
    """Grey-level codes floor(x * bins), at most bins - 1; integer arrays are codes already.

    Args:
        x: any shape, real values in [0, 1], or integer codes in [0, bins).
        bins: number of grey levels, at most 256.

    Raises:
        ValueError: NaN, values out of range, or more than 256 bins.
    """
    values = np.asarray(x)
    if not 1 <= bins <= 256:
        raise ValueError(f"bins must be from 1 to 256, not {bins}")
    if np.issubdtype(values.dtype, np.integer):
        if values.size and (values.min() < 0 or values.max() >= bins):
            raise ValueError(f"integer codes must lie in [0, {bins}), not in [{values.min()}, {values.max()}]")
        return values.astype(np.uint8, copy=False)
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float64)
    found = np.empty(values.shape, np.uint8)
    if _compiled(_digitise)(values.ravel(), values.dtype.type(bins), bins - 1, found.ravel()) < values.size:
        raise ValueError("grey values must lie in [0, 1] and hold no NaN: normalise the image first")
    return found


def mutual_information(x: ArrayLike, y: ArrayLike, *, bins: int = BINS) -> float:
    """Mutual information of two images in nats.

    MI = sum_{a,b} P(a, b) log( P(a, b) / (P(a) P(b)) ) over their joint grey-level histogram (Nath et al. 2020).
    The histogram's bias, about (bins - 1)^2 / (2 N) nats for N voxels, is the same for every pair of one size.
    docs/method.md: "mutual information".

    Args:
        x, y: images of one size, in [0, 1] or integer codes.
        bins: grey levels.

    Raises:
        ValueError: two sizes, NaN, or values out of range.
    """
    return float(mutual_information_matrix([x], [y], bins=bins)[0, 0])


def mutual_information_matrix(
    images: Iterable[ArrayLike],
    partners: Iterable[ArrayLike],
    *,
    bins: int = BINS,
    wanted: NDArray[np.bool_] | None = None,
    device: torch.device | None = None,
) -> Vector:
    """Mutual information of every image with every partner, in nats; beside the codes it needs little memory.

    Args:
        images: U images, each as ``mutual_information`` takes one.
        partners: T images.
        bins: grey levels.
        wanted: (U, T), which pairs to compute; None for all.
        device: where torch counts them, all pairs of a block in one scatter-add, which a GPU does fast; None counts on
            the CPU, in as many threads as torch uses.

    Returns:
        (U, T), NaN where not wanted.

    Raises:
        ValueError: two sizes, no voxels, NaN, values out of range, or ``wanted`` of another shape.
    """
    (left, shape), (right, other) = _stacked(images, bins), _stacked(partners, bins)
    if left.size and right.size and shape != other:
        raise ValueError(f"mutual information needs two images of one size, not of {shape} and {other} voxels")
    matrix = np.full((len(left), len(right)), np.nan)
    if wanted is not None and wanted.shape != matrix.shape:
        raise ValueError(
            f"wanted must have a row for each image and a column for each partner, {matrix.shape}, not {wanted.shape}"
        )
    rows, columns = np.nonzero(np.ones(matrix.shape, np.bool_) if wanted is None else wanted)
    if rows.size:
        count = _count_on_cpu if device is None else functools.partial(_count_by_scatter, device=device)
        matrix[rows, columns] = np.maximum(count(left, right, rows, columns, bins), 0.0)
    return matrix


def saturated(image_codes: Codes, *, share: float = 0.99) -> bool:
    """Whether ``share`` or more of the voxels have one code: such an image has no mutual information to speak of.

    Raises:
        ValueError: it has no voxels.
    """
    if not image_codes.size:
        raise ValueError("an image without voxels is neither saturated nor not")
    return bool(np.bincount(image_codes.ravel()).max() >= share * image_codes.size)


def _stacked(images: Iterable[ArrayLike], bins: int) -> tuple[Codes, tuple[int, ...]]:
    """(number of images, N), each row contiguous, and the images' one shape."""
    given = list(images)
    parts = _in_threads(lambda part: [codes(image, bins=bins) for image in given[part]], len(given))
    rows = [row for part in parts for row in part]
    if len({row.shape for row in rows}) > 1:
        raise ValueError(f"mutual information needs images of one size, not {sorted({row.shape for row in rows})}")
    if rows and not rows[0].size:
        raise ValueError("mutual information needs images with at least one voxel")
    return (np.stack([row.ravel() for row in rows]), rows[0].shape) if rows else (np.empty((0, 0), np.uint8), ())


def _in_threads(work: Callable[[slice], Result], number: int) -> list[Result]:
    """``work`` on all of ``number`` things, in as many threads as torch uses."""
    threads = torch.get_num_threads()
    share = max(1, math.ceil(number / (4 * threads)))  # a thread that is held up takes fewer of them
    parts = [slice(start, start + share) for start in range(0, number, share)]
    if len(parts) < 2:
        return [work(part) for part in parts]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, parts))


def _count_on_cpu(left: Codes, right: Codes, rows: Indices, columns: Indices, bins: int) -> Vector:
    """(pairs,), the mutual information of the pairs (rows[k], columns[k])."""
    values = np.empty(rows.size)
    fill, logs = _compiled(_fill), _n_log_n()
    _in_threads(lambda part: fill(left, right, rows[part], columns[part], bins, logs, values[part]), rows.size)
    return values


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function as machine code.

    Compiled at the first use in a process, in about a second: a cache on disk would need a folder that can be written,
    which an installation need not have. Without numba's own threads, which several Python threads may not enter at
    once.
    """
    import numba  # takes a while, which a server's start should not

    compiled: Callable[..., Any] = numba.njit(nogil=True)(function)
    return compiled


@functools.cache
def _n_log_n() -> Vector:
    """n log n for the counts that are frequent; a table is several times as fast as the logarithm."""
    counts = np.arange(4096.0)
    logs: Vector = counts * np.log(np.maximum(counts, 1.0))
    return logs


def _digitise(values: NDArray[Any], scale: Any, last: int, found: Codes) -> int:
    """Writes the codes floor(x * scale), at most ``last``; the number of values in [0, 1], which NaN is not.

    One pass over the image instead of numpy's six, which took longer than comparing it with a partner.
    """
    good = 0
    for i in range(values.size):
        good += (values[i] >= 0) & (values[i] <= 1)
        code = np.int32(values[i] * scale)
        found[i] = np.uint8(code if code < last else last)
    return good


def _fill(left: Codes, right: Codes, rows: Indices, columns: Indices, bins: int, logs: Vector, values: Vector) -> None:
    """Writes the mutual information of each pair: log N + (sum_ab n log n - sum_a n log n - sum_b n log n) / N.

    Neighbouring voxels often have one joint code, and an increment must wait for the one before it in the same cell.
    So they go to histograms of their own, which are added up in the end.
    """
    n, width = left.shape[1], np.uint16(bins)
    joint = np.empty((_SIDE_BY_SIDE, bins * bins), np.int32)
    chunk = np.empty(_CHUNK, np.uint16)  # bins * bins - 1 is at most 65535
    in_column = np.empty(bins, np.int64)
    for pair in range(rows.size):
        joint[:] = 0
        for start in range(0, n, _CHUNK):
            a = left[rows[pair], start : start + _CHUNK]
            b = right[columns[pair], start : start + _CHUNK]
            for i in range(a.size):
                chunk[i] = np.uint16(a[i]) * width + np.uint16(b[i])
            whole = a.size - a.size % _SIDE_BY_SIDE
            for i in range(0, whole, _SIDE_BY_SIDE):
                joint[0, chunk[i]] += 1
                joint[1, chunk[i + 1]] += 1
                joint[2, chunk[i + 2]] += 1
                joint[3, chunk[i + 3]] += 1
            for i in range(whole, a.size):
                joint[0, chunk[i]] += 1
        in_column[:] = 0
        total = 0.0
        for row in range(bins):
            in_row = 0
            for column in range(bins):
                cell = row * bins + column
                count = joint[0, cell] + joint[1, cell] + joint[2, cell] + joint[3, cell]
                in_row += count
                in_column[column] += count
                total += logs[count] if count < logs.size else count * math.log(count)
            total -= in_row * math.log(max(in_row, 1))
        for column in range(bins):
            total -= in_column[column] * math.log(max(in_column[column], 1))
        values[pair] = total / n + math.log(n)


def _count_by_scatter(
    left: Codes, right: Codes, rows: Indices, columns: Indices, bins: int, *, device: torch.device
) -> Vector:
    """As ``_count_on_cpu``, on a device."""
    n, cells = left.shape[1], bins * bins
    ours, theirs = torch.from_numpy(left).to(device), torch.from_numpy(right).to(device)
    values = []
    for block in torch.arange(rows.size).split(max(1, _BLOCK_CELLS // max(n, cells))):
        of = torch.arange(len(block), device=device, dtype=torch.int32).unsqueeze(1) * cells
        row, column = (torch.from_numpy(index)[block].to(device) for index in (rows, columns))
        joint_codes = of + ours[row].int() * bins + theirs[column]
        counts = torch.bincount(joint_codes.flatten(), minlength=len(block) * cells)
        joint = counts.reshape(-1, bins, bins).double()
        sums = [torch.xlogy(x, x).flatten(1).sum(dim=1) for x in (joint, joint.sum(dim=2), joint.sum(dim=1))]
        values.append((sums[0] - sums[1] - sums[2]) / n + math.log(n))
    found: Vector = torch.cat(values).cpu().numpy()
    return found
