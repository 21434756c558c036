"""An active step takes no more memory than there is, and says so where that is not enough."""

import threading
import time

import psutil
import pytest
import torch
from tests.active_step.conftest import IMAGES, RULE

from svgd_label import active_step
from svgd_label.active_step import score_pool
from svgd_label.checkpoint import new_committee
from svgd_label.pool import Pool
from svgd_label.scoring import PreparedImage
from svgd_label.svgd import Committee
from svgd_label.tasks import Task
from svgd_label.tasks.transforms import prepare_image


def test_no_more_images_are_read_at_a_time_than_fit_into_memory(
    pool: Pool, tiny: Task, committee: Committee, paths: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, inside, most = threading.Lock(), 0, 0
    prepared = active_step.prepare

    def prepare(task: Task, image: str, path: str) -> PreparedImage:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.05)
        with lock:
            inside -= 1
        return prepared(task, image, path)

    monkeypatch.setattr(active_step, "prepare", prepare)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    size, found = 12 * 13 * 14 * 40, []
    for version, available in enumerate((100 * size, size + size // 2)):
        most = 0
        free = psutil.virtual_memory()._replace(available=available)
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: free)
        score_pool(pool, tiny, committee, paths, version=version, strategy=RULE, seed=0)
        found.append(most)
    assert found[0] > 1
    assert found[1] == 1


def test_an_image_for_which_memory_runs_out_is_named_and_the_others_are_scored(
    pool: Pool, tiny: Task, committee: Committee, paths: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    b = prepare_image(tiny, paths["b"]).sum()

    def full(_: torch.nn.Module, given: tuple[torch.Tensor], output: torch.Tensor) -> None:
        if torch.isclose(given[0].sum(), b):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    committee.particles[0].register_forward_hook(full)
    result = score_pool(pool, tiny, committee, paths, version=1, strategy=RULE, seed=0)
    assert result.unusable == {"b": "b: cannot be scored (RuntimeError), see the log"}
    assert {row.image for row in pool.ranking()} == set("acdef")
    assert pool.overview.image_state("b")["unusable"] is None


def test_where_nothing_could_be_scored_the_picks_of_the_version_are_still_to_come(
    pool: Pool, tiny: Task, committee: Committee, paths: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    score_pool(pool, tiny, committee, paths, version=1, strategy=RULE, seed=0)
    before = pool.queue(), pool.ranking()
    with monkeypatch.context() as patch:
        full = psutil.virtual_memory()._replace(available=12 * 13 * 14 * 40)  # enough to read one, not to score it
        patch.setattr(psutil, "virtual_memory", lambda: full)
        result = score_pool(pool, tiny, new_committee(tiny, seed=1), paths, version=2, strategy=RULE, seed=0)
    assert set(result.unusable) == set(IMAGES)
    assert all("MB of memory, which are not free at present" in why for why in result.unusable.values())
    assert (result.acquisition, pool.unusable()) == (None, {})
    assert (pool.queue(), pool.ranking()) == before
    result = score_pool(pool, tiny, new_committee(tiny, seed=1), paths, version=2, strategy=RULE, seed=0)
    assert result.acquisition is not None
    assert pool.ranking_version() == 2
