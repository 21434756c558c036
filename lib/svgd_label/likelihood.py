"""The Dice log-likelihood: how well a particle's softmax output explains a batch of labels."""

from enum import Enum

import torch
from torch import Tensor

SMOOTHING = 1e-5
FLOOR = 1e-6


class Likelihood(str, Enum):
    """How a mean Dice D becomes a log-likelihood; the source writes log(1 - D) and leaves its sign open."""

    LOG_DICE = "log_dice"
    LOG_DICE_LOSS = "log_dice_loss"


def soft_dice(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Soft Dice of every class over a batch, with a squared denominator.

    D_c = (2 sum(y q) + s) / (sum(y^2) + sum(q^2) + s), s = 1e-5, sums over the batch and all voxels.
    docs/method.md: "soft Dice".

    Args:
        probabilities: (B, C, *spatial), q, the softmax output.
        labels: (B, C, *spatial), y, one-hot.

    Returns:
        (C,), each in [0, 1].
    """
    axes = (0, *range(2, probabilities.ndim))
    overlap = (labels * probabilities).sum(dim=axes)
    # y is 0 or 1, so y^2 = y.
    size = labels.sum(dim=axes) + probabilities.square().sum(dim=axes)
    return (2 * overlap + SMOOTHING) / (size + SMOOTHING)


def dice_log_likelihood(
    logits: Tensor, labels: Tensor, *, form: Likelihood = Likelihood.LOG_DICE, temperature: float = 1.0
) -> Tensor:
    """log p(labels | particle), up to a constant: the quantity that SVGD ascends.

    ``log_dice``: (1/T) log(D + 1e-6); ``log_dice_loss``: -(1/T) log(1 - D + 1e-6). D is the mean soft Dice over the
    foreground classes that occur in the batch's labels, and the background's where none occurs.
    docs/method.md: "log-likelihood".

    Args:
        logits: (B, C, *spatial).
        labels: (B, 1, *spatial), class values 0 to C - 1.
        form: which of the two readings.
        temperature: T.

    Returns:
        A scalar.

    Raises:
        ValueError: for labels of another shape, or with other values unless a CUDA graph is being captured.
    """
    classes = logits.shape[1]
    if labels.shape != (wanted := (logits.shape[0], 1, *logits.shape[2:])):
        raise ValueError(f"labels must be of shape {tuple(wanted)}, not {tuple(labels.shape)}")
    if not (labels.is_cuda and torch.cuda.is_current_stream_capturing()):  # a CUDA graph cannot look at values
        _check(labels, classes)
    # Compared, not by torch's one_hot, which spends as long on it as on all the rest.
    values = torch.arange(classes, device=labels.device).view(1, -1, *[1] * (labels.ndim - 2))
    one_hot = (labels == values).to(torch.float32)
    dice = soft_dice(logits.float().softmax(dim=1), one_hot)
    present = (one_hot.sum(dim=(0, *range(2, one_hot.ndim))) > 0).to(dice.dtype)
    present[0] = 1 - present[1:].amax()
    mean = (dice * present).sum() / present.sum()
    value = torch.log(mean + FLOOR) if form is Likelihood.LOG_DICE else -torch.log(1 - mean + FLOOR)
    return value / temperature


def _check(labels: Tensor, classes: int) -> None:
    least, most = labels.aminmax()
    whole = not labels.is_floating_point() or bool((labels == labels.floor()).all())  # NaN is not itself
    if not whole or least < 0 or most >= classes:
        raise ValueError(
            f"labels must be whole numbers from 0 to {classes - 1}; these go from {least:g} to {most:g}"
            f"{'' if whole else ', with others between'}"
        )
