"""The sample study: the committed files are what the generator makes, small, and fit to be learnt from."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from svgd_label.images import geometry, load_volume
from svgd_label.sample_data import ANTERIOR, CASES, LABELLED, POSTERIOR, generate, phantom

COMMITTED = Path(__file__).parents[1] / "sample-data"
NAMES = [f"phantom_{case:02}.nii.gz" for case in range(1, CASES + 1)]


def reference(folder: Path, name: str) -> Path:
    (found,) = [path for path in (folder / "labels" / "final" / name, folder / "reference" / name) if path.exists()]
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "sample-data"
    generate(folder)
    return folder


def test_the_committed_files_are_what_the_generator_makes(made: Path) -> None:
    files = {path.relative_to(made) for path in made.rglob("*") if path.is_file()}
    assert files == {path.relative_to(COMMITTED) for path in COMMITTED.rglob("*") if path.is_file()}
    for file in files:
        if file.suffix == ".gz":
            ours, theirs = nibabel.load(made / file), nibabel.load(COMMITTED / file)
            np.testing.assert_array_equal(np.asanyarray(ours.dataobj), np.asanyarray(theirs.dataobj))
            np.testing.assert_array_equal(ours.affine, theirs.affine)
        else:
            assert (made / file).read_bytes() == (COMMITTED / file).read_bytes()


def test_the_same_seed_makes_the_same_bytes_and_replaces_what_was_there(made: Path, tmp_path: Path) -> None:
    generate(tmp_path)
    (tmp_path / "labels" / "final" / "stray.nii.gz").touch()
    generate(tmp_path)
    assert [p.read_bytes() for p in sorted(tmp_path.rglob("*.gz"))] == [
        p.read_bytes() for p in sorted(made.rglob("*.gz"))
    ]


def test_another_seed_makes_other_phantoms() -> None:
    assert not np.array_equal(phantom(1, seed=1)[1], phantom(1, seed=0)[1])


def test_a_dozen_images_four_labels_eight_references_under_two_megabytes() -> None:
    assert sorted(path.name for path in COMMITTED.glob("*.nii.gz")) == NAMES
    assert len(list((COMMITTED / "labels" / "final").iterdir())) == len(LABELLED) == 4
    assert len(list((COMMITTED / "reference").iterdir())) == 8
    assert sum(path.stat().st_size for path in COMMITTED.rglob("*") if path.is_file()) < 2_000_000


@pytest.mark.parametrize("name", NAMES)
def test_every_phantom_can_be_used_and_holds_both_structures(name: str) -> None:
    shape, affine = geometry(COMMITTED / name)
    assert load_volume(COMMITTED / name).shape == (1, *shape)
    assert np.abs(np.array(shape) - [40, 52, 36]).max() <= 2
    label = nibabel.load(reference(COMMITTED, name))
    values = np.asanyarray(label.dataobj)
    assert values.shape == shape
    np.testing.assert_array_equal(label.affine, affine)
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), 1)  # mm
    assert set(np.unique(values)) == {0, ANTERIOR, POSTERIOR}
    assert min((values == ANTERIOR).sum(), (values == POSTERIOR).sum()) > 300
    # Anterior lies in front of posterior: affine and names agree.
    assert np.argwhere(values == ANTERIOR)[:, 1].mean() > np.argwhere(values == POSTERIOR)[:, 1].mean() + 5


def test_brightness_alone_does_not_find_the_structures() -> None:
    """The best threshold in hindsight, for each phantom its own, stays well below what a network reaches."""
    dice = []
    for name in NAMES:
        image = load_volume(COMMITTED / name).numpy()[0]
        truth = np.asanyarray(nibabel.load(reference(COMMITTED, name)).dataobj) > 0
        found = [image > np.percentile(image, percentile) for percentile in range(80, 99)]
        dice.append(max(2 * (mask & truth).sum() / (mask.sum() + truth.sum()) for mask in found))
    assert 0.3 < np.mean(dice) < 0.85


def test_the_cases_differ_in_brightness_and_contrast() -> None:
    images = [load_volume(COMMITTED / name).numpy()[0] for name in NAMES]
    means = [float(image.mean()) for image in images]
    assert max(means) > 10 * min(means)
