"""Which value of an upload is which structure of the task, by the names that file and client give."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from svgd_label.bands import BANDS
from svgd_label.labels.errors import LabelError

BACKGROUND = "background"
LARGEST_VALUE = 65535

Segments = list[tuple[str, int]]
"""Name and value, in the order of the upload."""


def plain_name(name: str) -> str:
    """A structure's name without what people write differently: case, and blanks around it."""
    return name.strip().casefold()


def named_by_client(label_info: Any, array: NDArray[np.uint16], *, raw: bool) -> Segments | None:
    """Names and values as the client means them; None where it sent no names."""
    if not label_info:
        return None
    if not isinstance(label_info, list) or not all(isinstance(entry, dict) for entry in label_info):
        raise LabelError('label_info must be a list like [{"name": "anterior", "idx": 1}]')
    entries: list[tuple[str, int | None]] = []
    for entry in label_info:
        name, idx = entry.get("name"), entry.get("idx")
        if not isinstance(name, str):
            raise LabelError("each entry of label_info needs a name")
        if isinstance(idx, float) and idx.is_integer():
            idx = int(idx)
        if "idx" in entry and (not isinstance(idx, int) or isinstance(idx, bool)):
            raise LabelError(f"idx {idx!r} of {name!r} in label_info is no whole number")
        if idx or plain_name(name) != BACKGROUND:
            entries.append((name, idx))
    by_order = [(name, position) for position, (name, _) in enumerate(entries, start=1)]
    by_idx = [(name, idx) for name, idx in entries if idx is not None]
    if not by_idx:
        return by_order
    if len(by_idx) < len(entries):
        raise LabelError("some segments in label_info have an idx and others have none; give one to each, or to none")
    check_values(by_idx, "idx in label_info")
    numbers = [idx for _, idx in by_idx]
    # Slicer's panel leaves out 'background' and scribbles, numbers the file 1, 2, ... and yet counts the left-out
    # ones in idx. So where idx ascends with gaps, the values in the file decide which numbering was meant. Raw voxels
    # come from a browser, never from Slicer.
    if raw or numbers != sorted(numbers) or numbers == list(range(1, len(numbers) + 1)):
        return by_idx
    present = _present(array)
    fits_idx, fits_order = present <= set(numbers), present <= set(range(1, len(numbers) + 1))
    if fits_idx and fits_order and {n for n, v in by_idx if v in present} != {n for n, v in by_order if v in present}:
        raise LabelError(
            f"its values {sorted(present)} may count the segments or be their idx in label_info, which would be "
            "different structures; number the segments 1, 2, 3, ... without gaps and save again"
        )
    return by_order if fits_order and not fits_idx else by_idx


def lookup_table(
    array: NDArray[np.uint16], segments: Segments | None, labels: Sequence[str], aliases: Mapping[str, Sequence[str]]
) -> tuple[NDArray[np.uint8], list[str], list[str]]:
    """Table from a value in the file to the task's value, with the names left out and the structures not named."""
    known = {plain_name(alias): labels.index(label) + 1 for label, names in aliases.items() for alias in names}
    known |= {plain_name(label): value for value, label in enumerate(labels, start=1)}
    if segments is None:
        segments = list(zip(labels, range(1, len(labels) + 1), strict=True))
    present = _present(array)
    unnamed = sorted(present - {value for _, value in segments})
    if unnamed:
        raise LabelError(
            f"it holds the value {unnamed[0]}, which belongs to no segment; the segments are "
            f"{', '.join(f'{value} {name}' for name, value in segments) or 'none'}"
        )
    segments = [(name, value) for name, value in segments if plain_name(name) != BACKGROUND and value]
    ignored = [(name, value) for name, value in segments if plain_name(name) not in known]
    named = {known[plain_name(name)] for name, _ in segments if plain_name(name) in known}
    missing = [label for value, label in enumerate(labels, start=1) if value not in named]
    unknown = [name for name, value in ignored if value in present]
    refuse_bands(unknown)
    if unknown and missing:
        raise LabelError(
            f"it has voxels of {', '.join(map(repr, unknown))}, which the task does not know, and no segment "
            f"{', '.join(map(repr, missing))}; rename the segment to one of {', '.join(known)}"
        )
    lookup = np.zeros(LARGEST_VALUE + 1, np.uint8)
    for name, value in segments:
        lookup[value] = known.get(plain_name(name), 0)
    return lookup, [name for name, _ in ignored], missing


def refuse_bands(names: Iterable[str]) -> None:
    """Bands of doubt, which a viewer shows as segments over the structures: saved with these, they would be holes."""
    shown = [name for name in names if plain_name(name) in BANDS]
    if shown:
        raise LabelError(
            f"its segments {', '.join(map(repr, shown))} show where the committee is unsure and cover the structures "
            "beneath; delete these segments and save again"
        )


def check_values(segments: Segments, what: str) -> None:
    """Refuses values that no voxel can have, the background's for a structure, and one value for two names."""
    for name, value in segments:
        if not (1 <= value <= LARGEST_VALUE or (value == 0 and plain_name(name) == BACKGROUND)):
            raise LabelError(f"{name!r} has {value} as {what}; number the segments from 1 to {LARGEST_VALUE}")
    if len({value for _, value in segments}) < len(segments):
        raise LabelError(f"two segments have the same {what}; give each its own and save again")


def _present(array: NDArray[np.uint16]) -> set[int]:
    """The values above 0 that occur; a table instead of sorting, which takes seconds on a CT."""
    seen = np.zeros(LARGEST_VALUE + 1, bool)
    seen[array] = True
    return set(np.flatnonzero(seen).tolist()) - {0}
