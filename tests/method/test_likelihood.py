"""The Dice log-likelihood in closed form."""

import math

import pytest
import torch
from monai.losses import DiceLoss
from torch import Tensor

from svgd_label.likelihood import Likelihood, dice_log_likelihood, soft_dice


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return torch.nn.functional.one_hot(labels, classes).movedim(-1, 1).float()


def sure(labels: Tensor, classes: int) -> Tensor:
    return one_hot(labels[:, 0], classes) * 200 - 100


def test_soft_dice_with_a_squared_denominator_over_the_batch() -> None:
    probabilities = torch.tensor([[[0.5, 0.8], [0.5, 0.2]], [[0.1, 1.0], [0.9, 0.0]]])  # (B=2, C=2, voxels=2)
    labels = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
    expected = [
        (2 * (0.5 + 1.0) + 1e-5) / (2 + (0.25 + 0.64 + 0.01 + 1) + 1e-5),
        (2 * (0.2 + 0.9) + 1e-5) / (2 + (0.25 + 0.04 + 0.81) + 1e-5),
    ]
    torch.testing.assert_close(soft_dice(probabilities, labels), torch.tensor(expected))


@pytest.mark.parametrize("form", list(Likelihood))
def test_value_and_gradient_follow_from_monais_dice_loss(form: Likelihood) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (2, 1, 5, 4, 3), generator=generator)
    logits = torch.randn(2, 3, 5, 4, 3, generator=generator, requires_grad=True)
    loss = DiceLoss(
        include_background=False,
        to_onehot_y=True,
        softmax=True,
        squared_pred=True,
        batch=True,
        smooth_nr=1e-5,
        smooth_dr=1e-5,
    )(logits, labels)
    expected = torch.log(1 - loss + 1e-6) if form is Likelihood.LOG_DICE else -torch.log(loss + 1e-6)
    value = dice_log_likelihood(logits, labels, form=form)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, logits), torch.autograd.grad(expected, logits))


def test_logits_of_half_precision_are_summed_in_single() -> None:
    labels = torch.zeros(1, 1, 40, 40, 40, dtype=torch.long)
    labels[0, 0, :20] = 1
    # bfloat16 holds no integer above 256 exactly, so sums of 32,000 voxels in it would be off by per cents.
    logits = (sure(labels, 2) * 0.01).bfloat16()
    value = dice_log_likelihood(logits, labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, dice_log_likelihood(logits.float(), labels))


def test_a_perfect_prediction_has_log_likelihood_zero() -> None:
    labels = torch.randint(0, 3, (2, 1, 4, 4, 4))
    assert dice_log_likelihood(sure(labels, 3), labels).item() == pytest.approx(0, abs=1e-5)


def test_only_foreground_classes_that_occur_count() -> None:
    labels = torch.zeros(1, 1, 2, 2, 2, dtype=torch.long)
    labels[0, 0, 0] = 1  # class 2 does not occur
    prediction = labels.clone()
    prediction[0, 0, 1, 0, 0] = 2  # wrong, but class 2 has no reference and background is not foreground
    value = dice_log_likelihood(sure(prediction, 3), labels)
    assert value.item() == pytest.approx(0, abs=1e-5)


def test_without_any_foreground_the_background_counts() -> None:
    labels = torch.zeros(1, 1, 2, 2, 2, dtype=torch.long)
    prediction = labels.clone()
    prediction[0, 0, 0] = 1
    dice = 2 * 4 / (8 + 4)
    assert dice_log_likelihood(sure(prediction, 3), labels).item() == pytest.approx(math.log(dice), abs=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_the_two_readings(temperature: float) -> None:
    labels = torch.zeros(1, 1, 2, 2, 2, dtype=torch.long)
    labels[0, 0, 0] = 1
    prediction = labels.clone()
    prediction[0, 0, 0, 0, 0] = 0
    dice = 2 * 3 / (4 + 3)
    logits = sure(prediction, 2)
    log_dice = dice_log_likelihood(logits, labels, temperature=temperature)
    assert log_dice.item() == pytest.approx(math.log(dice + 1e-6) / temperature, abs=1e-4)
    other = dice_log_likelihood(logits, labels, form=Likelihood.LOG_DICE_LOSS, temperature=temperature)
    assert other.item() == pytest.approx(-math.log(1 - dice + 1e-6) / temperature, abs=1e-3)


@pytest.mark.parametrize("form", list(Likelihood))
def test_a_better_prediction_is_likelier_in_both_readings(form: Likelihood) -> None:
    labels = torch.randint(0, 3, (1, 1, 4, 4, 4))
    good, bad = sure(labels, 3) * 0.02, sure(labels, 3) * 0.01
    assert dice_log_likelihood(good, labels, form=form) > dice_log_likelihood(bad, labels, form=form)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.full((1, 1, 2, 2, 2), 3), "whole numbers from 0 to 2"),
        (torch.full((1, 1, 2, 2, 2), -1), "whole numbers from 0 to 2"),
        (torch.full((1, 1, 2, 2, 2), 0.5), "with others between"),
        (torch.full((1, 1, 2, 2, 2), torch.nan), "whole numbers from 0 to 2"),
        (torch.zeros(1, 3, 2, 2, 2), "shape"),
        (torch.zeros(1, 1, 1, 1, 1), "shape"),
        (torch.zeros(2, 1, 2, 2, 2), "shape"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels: torch.Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dice_log_likelihood(torch.zeros(1, 3, 2, 2, 2), labels)
