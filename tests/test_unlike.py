"""An image is unlike the labelled ones by how far these lie from one another, and only where there are enough."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from svgd_label import checkpoint
from svgd_label.scoring import PreparedImage, prepare, score
from svgd_label.tasks import load_task
from svgd_label.unlike import ENOUGH, likeness

# On a line, a metre apart, but for the last, which is three away from its nearest: the loneliest.
LABELLED = np.array([[x, 0.0] for x in (*range(ENOUGH - 1), ENOUGH + 1)], np.float32)


@pytest.mark.parametrize(("at", "unlike"), [([1.0, 2.99], False), ([1.0, 3.01], True)])
def test_the_limit_is_how_far_the_loneliest_labelled_image_is_from_its_nearest(at: list[float], unlike: bool) -> None:
    found = likeness(np.array(at, np.float32), LABELLED)
    assert found is not None
    assert found.unlike is unlike
    assert found.labelled == ENOUGH
    assert found.limit == pytest.approx(3)
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


@pytest.mark.slow
def test_of_real_volumes_few_are_called_unlike_and_of_inverted_or_upturned_ones_most(hippocampus: Path) -> None:
    task = load_task("hippocampus")
    shipped = checkpoint.shipped(task)
    assert shipped is not None
    committee = checkpoint.load(shipped, task, device=torch.device("cpu")).committee
    splits = json.loads((hippocampus / "splits.json").read_text(encoding="utf-8"))

    def read(name: str) -> PreparedImage:
        return prepare(task, name, str(hippocampus / "imagesTr" / name))

    def features(image: PreparedImage, values: Tensor | None = None) -> NDArray[np.float32]:
        seen = image if values is None else dataclasses.replace(image, image=values)
        found = score(task, committee, seen).features
        assert found is not None
        return np.asarray(found, np.float32)

    torch.manual_seed(0)
    pool = np.stack([features(read(name)) for name in splits["pool"][:60]])
    held_out = [read(name) for name in splits["test"][:30]]
    kinds = {
        "same": [features(image) for image in held_out],
        "noisy": [
            features(image, (image.image + 0.1 * torch.randn_like(image.image)).clamp(0, 1)) for image in held_out
        ],
        "inverted": [features(image, 1 - image.image) for image in held_out],
        "upturned": [features(image, image.image.flip(3)) for image in held_out],
    }
    generator = np.random.default_rng(0)
    called: dict[str, list[bool]] = {kind: [] for kind in kinds}
    for _ in range(40):
        labelled = pool[generator.choice(len(pool), 20, replace=False)]
        for kind, seen in kinds.items():
            called[kind] += [found.unlike for one in seen if (found := likeness(one, labelled)) is not None]
    shares = {kind: np.mean(found) for kind, found in called.items()}
    assert shares["same"] < 1 / 21
    assert shares["noisy"] < 0.1
    assert min(shares["inverted"], shares["upturned"]) > 0.9
