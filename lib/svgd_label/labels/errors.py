"""The error of this package, and what its sentences have in common."""

from collections.abc import Sequence

from svgd_label.errors import UserError


class LabelError(UserError):
    """A label that cannot be used or stored; the sentence names its image and says why."""


def times(shape: Sequence[int]) -> str:
    """A grid's size as a sentence has it, ``35 x 51 x 36``."""
    return " x ".join(map(str, shape))
