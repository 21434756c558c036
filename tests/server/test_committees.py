"""Which committee the server uses: shipped, published, damaged or of another task."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi import HTTPException
from tests.conftest import blob, save_nifti

from svgd_label import checkpoint
from svgd_label.checkpoint import UnreadableError, new_committee, save
from svgd_label.errors import UserError
from svgd_label.pool import Database, Pool
from svgd_label.server.app import _check_labels
from svgd_label.server.committees import Committees
from svgd_label.server.conf import Conf
from svgd_label.server.trainer import SVGDTrainer
from svgd_label.server.training_lock import is_trained_elsewhere, training_alone
from svgd_label.tasks import Task

TINY = Task.model_validate(
    {
        "name": "tiny",
        "labels": ["one", "two"],
        "window": [16, 16, 16],
        "network": {"name": "UNet", "arguments": {"channels": [4, 8], "strides": [2]}},
        "particles": 2,
    }
)


@pytest.fixture
def committees(tmp_path: Path) -> Iterator[Committees]:
    database = Database(tmp_path, task="tiny")
    yield Committees(Pool(database, validation="none", max_frequency=3), TINY, tmp_path / "committees")
    database.close()


def publish(committees: Committees, version: int) -> None:
    save(committees.file(version), new_committee(TINY, seed=version), TINY, version=version)
    committees.pool.models.publish(version, committees.file(version), {})


def version_of(committees: Committees) -> int | None:
    current = committees.current()
    return None if current is None else current.version


def test_the_newest_is_used_and_read_once(committees: Committees) -> None:
    assert version_of(committees) is None
    publish(committees, 1)
    assert version_of(committees) == 1
    assert committees.current() is committees.current()
    publish(committees, 2)
    assert version_of(committees) == 2


def test_a_damaged_one_is_withdrawn_for_the_one_before(committees: Committees) -> None:
    publish(committees, 1)
    publish(committees, 2)
    committees.file(2).write_bytes(b"half a file")
    assert version_of(committees) == 1
    assert committees.pool.models.newest() == 1


def test_one_of_another_network_is_kept_but_not_used(committees: Committees) -> None:
    publish(committees, 1)
    other = Committees(committees.pool, TINY.model_copy(update={"particles": 3}), committees.folder)
    assert version_of(other) is None
    assert version_of(committees) == 1


def test_a_copy_to_be_trained_is_not_the_one_that_infers(committees: Committees) -> None:
    publish(committees, 1)
    current, copy = committees.current(), committees.read_newest()
    assert current is not None
    assert copy is not None
    next(copy.committee.parameters()).data.zero_()
    assert next(current.committee.parameters()).abs().sum() > 0


def test_after_the_index_was_lost_the_files_are_taken_over(committees: Committees, tmp_path: Path) -> None:
    """Or where a kill came between the file and the index: then what the training said of it is in the file alone."""
    metrics = {"started": 7.5, "steps": 4}
    save(committees.file(3), new_committee(TINY, seed=3), TINY, version=3, metrics=metrics)
    again = Pool(Database(tmp_path / "new", task="tiny"), validation="none", max_frequency=3)
    found = Committees(again, TINY, committees.folder)
    found.adopt_files()
    assert version_of(found) == 3
    assert again.models.metrics(3) == {**metrics, "origin": "found in the state folder"}


def test_a_kill_between_file_and_index_loses_no_training(committees: Committees) -> None:
    for version in (0, 1):
        publish(committees, version)
    save(committees.file(2), new_committee(TINY, seed=2), TINY, version=2, metrics={"steps": 4})
    committees.adopt_files()
    assert version_of(committees) == 2
    assert committees.pool.models.metrics(2)["steps"] == 4
    committees.pool.models.withdraw(2)
    committees.pool.models.publish(3, committees.file(3), {})  # whose file is gone
    shutil.copy(committees.file(1), committees.folder / "1-good.pt")
    committees.adopt_files()
    assert committees.pool.models.file(2) is None, "older than one that is known"
    assert version_of(committees) == 1, "a copy is nothing new"


def test_what_cannot_be_read_at_present_is_not_withdrawn(committees: Committees) -> None:
    for version in (1, 2):
        publish(committees, version)
    away = committees.folder.rename(committees.folder.with_name("away"))
    with pytest.raises(UnreadableError, match="cannot be read at present"):
        committees.read_newest()
    away.rename(committees.folder)
    assert version_of(committees) == 2
    committees.file(2).unlink()
    assert (found := committees.read_newest()) is not None
    assert found.version == 1, "a file that is gone is gone"


def test_a_second_training_beside_one_that_runs_is_refused(committees: Committees) -> None:
    """As after a kill of the server alone, which its training outlives."""
    trainer = SVGDTrainer(committees, Conf())
    trainer.stats_file.write_text('{"status": "training", "version": 1}')
    state = committees.pool.database.folder
    assert not is_trained_elsewhere(state)
    with training_alone(state):
        assert is_trained_elsewhere(state)
        with pytest.raises(HTTPException, match="another training of this study runs"):
            trainer({}, None)
    assert trainer.stats_file.read_text() == '{"status": "training", "version": 1}', "those of the one that runs"
    with pytest.raises(HTTPException) as caught:
        trainer({}, None)
    assert caught.value.status_code == 400, "nothing is labelled"


def test_the_shipped_one_is_version_zero_where_nothing_newer_is_there(
    committees: Committees, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "tiny.pt"
    save(shipped, new_committee(TINY, seed=9), TINY, version=0, half=True)
    monkeypatch.setattr(checkpoint, "shipped", lambda task: shipped)
    committees.adopt_shipped()
    assert version_of(committees) == 0
    publish(committees, 1)
    committees.adopt_shipped()
    assert version_of(committees) == 1


def test_what_was_proposed_is_not_computed_again(committees: Committees, tmp_path: Path) -> None:
    image = tmp_path / "a.nii.gz"
    save_nifti(image, blob((12, 13, 14), 0)[0])
    publish(committees, 1)
    current = committees.current()
    assert current is not None
    runs: list[object] = []
    current.committee.particles[0].register_forward_hook(lambda *_: runs.append(None))
    first, again = committees.segment(str(image)), committees.segment(str(image))
    assert first is not None
    assert again is not None
    assert len(runs) == 1
    assert (first[0], again[0]) == (1, 1)
    for name in ("labels", "bands", "affine", "features"):
        np.testing.assert_array_equal(getattr(first[1], name), getattr(again[1], name))
    assert first[1].volumes == again[1].volumes

    publish(committees, 2)  # what the annotator corrected is remembered after a newer committee has come
    old = committees.segment(str(image), 1)
    assert old is not None
    assert old[0] == 1
    newest = committees.segment(str(image))
    assert newest is not None
    assert newest[0] == 2

    save_nifti(image, blob((14, 13, 12), 1)[0])  # another image under the same name
    assert committees.segment(str(image), 1) is None
    replaced = committees.segment(str(image))
    assert replaced is not None
    assert replaced[1].labels.shape == (14, 13, 12)


def test_only_the_last_files_are_kept(committees: Committees) -> None:
    for version in range(6):
        publish(committees, version)
    committees.prune()
    assert sorted(file.name for file in committees.folder.iterdir()) == ["00003.pt", "00004.pt", "00005.pt"]


def test_structures_may_be_added_at_the_end_and_nowhere_else(committees: Committees) -> None:
    database = committees.pool.database
    _check_labels(database, TINY)
    _check_labels(database, TINY.model_copy(update={"labels": ("one", "two", "three")}))
    for labels in [("two", "one", "three"), ("one", "two"), ("one", "new", "two", "three")]:
        with pytest.raises(UserError, match="saved for the structures one, two, three"):
            _check_labels(database, TINY.model_copy(update={"labels": labels}))
