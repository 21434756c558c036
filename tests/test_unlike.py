"""An image is unlike the labelled ones by how far these lie from one another, and only where there are enough."""

import numpy as np
import pytest

from svgd_label.unlike import ENOUGH, FACTOR, likeness

# On a line, a metre apart, but for the last, which is three away from its nearest: the loneliest.
LABELLED = np.array([[x, 0.0] for x in (0, 1, 2, 3, 6)], np.float32)


@pytest.mark.parametrize(("at", "unlike"), [([1.0, 3 * FACTOR - 0.01], False), ([1.0, 3 * FACTOR + 0.01], True)])
def test_the_limit_is_a_multiple_of_what_the_loneliest_labelled_image_is_away_from_its_nearest(
    at: list[float], unlike: bool
) -> None:
    found = likeness(np.array(at, np.float32), LABELLED)
    assert found is not None
    assert found.unlike is unlike
    assert found.labelled == 5
    assert found.limit == pytest.approx(3 * FACTOR)
    assert found.distance == pytest.approx(at[1])


def test_a_labelled_image_is_not_unlike_itself() -> None:
    for features in LABELLED:
        found = likeness(features, LABELLED)
        assert found is not None
        assert found.distance == 0
        assert not found.unlike


def test_with_few_labelled_images_nothing_is_said() -> None:
    far = np.array([99.0, 99.0], np.float32)
    assert likeness(far, LABELLED[: ENOUGH - 1]) is None
    assert likeness(far, np.zeros((0, 0), np.float32)) is None
