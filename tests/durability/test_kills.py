"""Whatever a client was told is saved outlives the server, killed at any moment, and the server starts again."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from monailabel.datastore.local import LocalDatastore
from tests.conftest import save_nifti
from tests.durability import kills
from tests.durability.crowd import digest
from tests.durability.study import make_study, random_label
from tests.e2e.server import Server

pytestmark = pytest.mark.slow


def test_ten_kills_cost_no_acknowledged_label_and_no_ranking(tmp_path: Path) -> None:
    report = kills.run(tmp_path, 10, seed=4)
    assert report.problems == []
    assert min(report.kills.values()) == 2
    assert report.acknowledged > 50, "the clients hardly saved anything: the kills met nothing"
    assert report.trainings > 0


def test_a_study_of_the_stock_datastore_is_taken_over_by_a_first_start_that_is_killed(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    images = make_study(tmp_path, 60)
    studies = tmp_path / "studies"
    store = LocalDatastore(str(studies), auto_reload=False)
    for image in images[:20]:
        label = save_nifti(tmp_path / "label.nii.gz", random_label(rng))
        store.save_label(image, str(label), "final", {"label_info": [], "client_id": "before"})
    store.update_image_info(images[30], {"remark": "motion"})
    before = {file.name: digest(file) for file in (studies / "labels" / "final").iterdir()}
    index = digest(studies / "datastore_v2.json")
    server = Server(tmp_path, {"task": str(tmp_path / "tiny.yaml")})
    state = studies / ".svgd"
    try:
        for number in range(4):
            if number < 3:  # the first moments of a state folder, more than once
                shutil.rmtree(state, ignore_errors=True)
            server.launch()
            while not (state / "state.sqlite").exists():
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.15))
            server.kill()
        server.start()
        objects = server.request("GET", "/datastore/", params={"output": "all"}).json()["objects"]
        assert sorted(objects) == images
        assert {image for image in images if "final" in objects[image]["labels"]} == set(images[:20])
        assert objects[images[30]]["image"]["info"]["remark"] == "motion"
        assert all(objects[image]["labels"]["final"]["info"]["client_id"] == "before" for image in images[:20])
        assert server.query("SELECT COUNT(*) FROM images WHERE validation = 1") == [(4,)]
    finally:
        server.kill()
    assert {file.name: digest(file) for file in (studies / "labels" / "final").iterdir()} == before
    assert digest(studies / "datastore_v2.json") == index
    assert json.loads((studies / "datastore_v2.json").read_text())["objects"].keys() == set(images)
