"""The page at /svgd/: what its routes answer, who may ask, and that a browser shows it without an error."""

import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from fastapi import FastAPI
from fastapi.testclient import TestClient
from monailabel.utils.async_tasks.utils import background_tasks
from PIL import Image
from tests.e2e.server import PHANTOMS, Server, copy_sample, reference
from tests.server.browser import CHROMIUM, MISSING, Browser

from svgd_label.pool import Database, LabelStore, Pool, RankingRow, Studies
from svgd_label.server.auto_train import AutoTrain
from svgd_label.server.committees import Committees
from svgd_label.server.conf import Conf
from svgd_label.server.page import page_routes
from svgd_label.server.page.routes import _is_worth_a_line
from svgd_label.server.trainer import SVGDTrainer
from svgd_label.tasks import Task

ODD = ["<img src=x onerror=alert(1)>", "a&b=c#d?e%20", "脳 \N{BRAIN}", "'; DROP TABLE images; --"]


@pytest.fixture
def pool(tmp_path: Path, tiny: Task) -> Iterator[Pool]:
    """Four images with odd names, ranked in this order; the last one is labelled."""
    database = Database(tmp_path / "state", task=tiny.name)
    pool = Pool(database, validation="none", max_frequency=3)
    with database.transaction() as connection:
        connection.executemany(
            "INSERT INTO images (image, name, ext, fingerprint) VALUES (?, ?, '.nii.gz', '1:1')",
            [(image, f"{image}.nii.gz") for image in ODD],
        )
    pool.label_saved(ODD[3])
    pool.models.publish(1, tmp_path / "1.pt", {"validation_dice": [0.8, None, 0.6], "labelled": 1})
    pool.replace_ranking(1, [RankingRow(image, 1 - n, 0.5 - n / 10, 0.2 + n) for n, image in enumerate(ODD)])
    pool.acquire(1, "entropy_mi", 4)
    yield pool
    database.close()


@pytest.fixture
def client(pool: Pool, tiny: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setitem(background_tasks, "train", [])
    monkeypatch.setitem(background_tasks, "scoring", [])
    trainer = SVGDTrainer(Committees(pool, tiny, tmp_path / "committees"), Conf())
    auto_train = AutoTrain(0, pool, LabelStore(Studies(tmp_path, pool)), lambda: None)
    app = FastAPI()
    app.include_router(page_routes(pool, tiny, trainer, auto_train, ohif=False))
    with TestClient(app) as client:
        yield client


def test_the_shell_holds_no_data_and_allows_no_script_but_its_own(client: TestClient, pool: Pool) -> None:
    page = client.get("/svgd/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    assert not any(image in page.text for image in ODD)
    assert client.get("/svgd", follow_redirects=False).headers["location"].endswith("/svgd/")
    linked = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert sorted(linked) == ["page.css", "page.js"]
    texts = [page.text, *(client.get(f"/svgd/{file}").text for file in (*linked, "curve.js", "text.js"))]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", "".join(texts)), "nothing comes from elsewhere"
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\b", "".join(texts))
    assert not re.search(r"<script>|\son\w+=|style=", page.text)


def test_the_state_says_which_image_is_next_and_why(client: TestClient, pool: Pool) -> None:
    state = client.get("/svgd/state").json()
    assert state["next"]["image"] == ODD[0]
    assert state["next"]["rank"] == 1
    assert state["next"]["words"] == [
        "The committee is surer about 75% of the ranked images.",
        "No ranked image is less like what has been labelled.",
    ]
    assert client.get("/svgd/state").json()["next"]["image"] == ODD[0]
    assert pool.next_image("ann").image == ODD[0]  # type: ignore[union-attr]
    state = client.get("/svgd/state").json()
    assert state["next"]["image"] == ODD[1]
    assert next(row for row in state["table"]["rows"] if row["image"] == ODD[0])["why"] == "ann"


def test_the_state_holds_curve_history_and_counts(client: TestClient) -> None:
    state = client.get("/svgd/state").json()
    assert state["curve"] == [
        {"version": 1, "labelled": 1, "validation": pytest.approx(0.7), "proposed": None},
    ]
    assert [(step["annotated"], step["repeated"]) for step in state["history"]] == [(ODD[:3], [ODD[3]])]
    assert sum(state["counts"].values()) == 4
    assert state["training"]["status"] == "never"
    assert not state["training"]["running"]


def test_a_training_that_was_stopped_while_it_scored_has_made_its_model(
    client: TestClient, pool: Pool, tmp_path: Path
) -> None:
    def status() -> str:
        return str(client.get("/svgd/state").json()["training"]["status"])

    stats = {"version": 2, "status": "scoring", "process": 2**30}
    (pool.database.folder / "train_stats.json").write_text(json.dumps(stats))
    assert status() == "stopped"
    pool.models.publish(2, tmp_path / "2.pt", {})
    assert status() == "unscored"
    pool.replace_ranking(2, [RankingRow(image) for image in ODD])
    pool.acquire(2, "entropy_mi", 4)
    assert status() == "done"


def test_the_table_is_asked_for_by_column_status_and_text(client: TestClient) -> None:
    def images(**query: str | int | bool) -> list[str]:
        table = client.get("/svgd/state", params=query).json()["table"]
        return [row["image"] for row in table["rows"]]

    assert images() == ODD
    assert images(sort="score", descending=True) == ODD
    assert images(status="labelled") == [ODD[3]]
    assert images(search="<img") == [ODD[0]]
    assert images(page=1000) == ODD, "a page beyond the end is the last one"
    searched = client.get("/svgd/state", params={"search": "<img"}).json()
    assert sum(searched["counts"].values()) == 4, "how far along does not depend on the search"
    for wrong in ({"sort": "image; --"}, {"status": "x"}, {"page": 0}, {"page": 10**30}, {"search": "x" * 201}):
        assert client.get("/svgd/state", params=wrong).status_code == 422


def test_of_ten_thousand_images_fifty_are_sent(client: TestClient, pool: Pool) -> None:
    many = [f"image_{number:05}" for number in range(10_000)]
    with pool.database.transaction() as connection:
        connection.executemany(
            "INSERT INTO images (image, name, ext, fingerprint) VALUES (?, ?, '.nii.gz', '1:1')",
            [(image, f"{image}.nii.gz") for image in many],
        )
        pool.replace_ranking(1, [RankingRow(image, 0.5, n / 10_000, 0.5) for n, image in enumerate(many)])
    table = client.get("/svgd/state", params={"sort": "entropy", "descending": True, "page": 2}).json()["table"]
    assert (table["total"], table["pages"], table["page"]) == (10_004, 201, 2)
    assert [row["image"] for row in table["rows"]] == many[-51:-101:-1]


def test_a_small_picture_is_the_middle_slice_as_radiologists_look_at_it(client: TestClient, pool: Pool) -> None:
    codes = np.zeros((8, 8, 8), np.uint8)
    codes[7, 7, 4] = 63  # farthest to the patient's right and front, in the middle
    pool.write_codes({ODD[1]: codes})
    answer = client.get("/svgd/thumbnail", params={"image": ODD[1]})
    picture = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["cache-control"] == "no-store"
    assert picture.shape == (8, 8)
    assert picture[0, 0] == 255, "right is left, front is above"
    assert picture.sum() == 255
    rows = client.get("/svgd/state").json()["table"]["rows"]
    assert {row["image"]: row["coded"] for row in rows} == {image: int(image == ODD[1]) for image in ODD}
    for unknown in (ODD[0], "nobody", "../../etc/passwd", "\0"):
        assert client.get("/svgd/thumbnail", params={"image": unknown}).status_code == 404


def test_open_pages_do_not_fill_the_access_log() -> None:
    def is_logged(path: str, status: int) -> bool:
        record = logging.LogRecord("a", logging.INFO, "", 0, "%s %s %s %s %s", ("ip", "GET", path, "1.1", status), None)
        return _is_worth_a_line(record)

    assert not is_logged("/svgd/state?page=1", 200)
    assert is_logged("/svgd/state?page=1", 500)
    assert is_logged("/svgd/thumbnail?image=a", 200)


ASK = """
from fastapi import FastAPI
from fastapi.testclient import TestClient
from svgd_label.server.page import page_routes
from svgd_label.tasks import load_task

app = FastAPI()
app.include_router(page_routes(None, load_task("sample"), None, None, ohif=False))
with TestClient(app) as client:
    paths = ("", "page.css", "page.js", "curve.js", "text.js", "state", "thumbnail?image=a")
    print(*(client.get("/svgd/" + path).status_code for path in paths))
"""


def test_with_login_the_shell_is_open_and_its_data_ask_for_the_token() -> None:
    environment = {**os.environ, "MONAI_LABEL_AUTH_ENABLE": "true", "MONAI_LABEL_AUTH_REALM_URI": "http://127.0.0.1:9"}
    run = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, timeout=900)
    assert run.stdout.split("\n")[-2:] == ["200 200 200 200 200 401 401", ""], run.stderr


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The sample study, with an image whose name is markup."""
    if CHROMIUM is None:
        pytest.skip(MISSING)
    server = Server(tmp_path_factory.mktemp("page"), {"task": "sample"})
    copy_sample(server.studies)
    (server.studies / "phantom_12.nii.gz").rename(server.studies / "<b onclick=x()>12.nii.gz")
    try:
        yield server.start()
    finally:
        server.kill()


@pytest.fixture
def browser(study: Server, tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path / "profile") as browser:
        browser.open(f"{study.address}/svgd/")
        browser.wait_for("document.querySelectorAll('#images tbody tr').length")
        yield browser
        assert browser.errors == []


SHOWN = "[...document.querySelectorAll('#images tbody tr')].map((row) => row.cells[1].textContent)"


@pytest.mark.slow
def test_a_browser_shows_the_study_without_an_error(browser: Browser) -> None:
    shown = browser.run(SHOWN)
    assert sorted(shown) == sorted([*PHANTOMS[:-1], "<b onclick=x()>12"])
    assert browser.run("document.querySelector('#images b')") is None, "a name is text, whatever it looks like"
    assert browser.run("document.getElementById('far-words').textContent").startswith("4 of 12 images labelled")
    assert browser.run("document.getElementById('next-name').textContent") in shown
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    browser.wait_for("document.querySelector('#images canvas').width > 8")
    painted = """(() => { const c = document.querySelector('#images canvas');
        return new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size; })()"""
    browser.wait_for(f"{painted} > 10")


@pytest.mark.slow
def test_the_table_is_sorted_from_the_keyboard_and_the_focus_stays(browser: Browser) -> None:
    browser.run("document.querySelector('#images th[data-column=image] button').focus()")
    browser.press("Enter")
    browser.wait_for("document.querySelector('#images th[data-column=image]').ariaSort === 'ascending'")
    browser.press("Enter")
    browser.wait_for("document.querySelector('#images th[data-column=image]').ariaSort === 'descending'")
    browser.wait_for(f"{SHOWN}[0] === 'phantom_11'")
    assert browser.run("document.activeElement.textContent") == "Image"
    browser.press("Tab")
    assert browser.run("document.activeElement.textContent") == "Status"
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid", "the focus is seen"


@pytest.mark.slow
def test_flagging_and_putting_back_from_the_row(study: Server, browser: Browser) -> None:
    row = "[...document.querySelectorAll('#images tbody tr')].find((row) => row.textContent.includes('<b onclick'))"
    browser.run(f"{row}.querySelector('button').click()")
    browser.run("document.querySelector('#flag input').value = 'moved <i>a lot</i>'")
    browser.run("document.querySelector('#flag button[type=submit]').click()")
    browser.wait_for(f"{row}.textContent.includes('flagged: moved <i>a lot</i>')")
    assert study.image_info("<b onclick=x()>12")["flagged"] == "moved <i>a lot</i>"
    browser.run(f"{row}.querySelector('button').click()")
    browser.wait_for(f"{row}.textContent.includes('unlabelled')")


@pytest.mark.slow
def test_a_reason_that_could_not_be_sent_is_still_there(study: Server, browser: Browser) -> None:
    row = "[...document.querySelectorAll('#images tbody tr')].find((row) => row.textContent.includes('phantom_03'))"
    browser.run(f"{row}.querySelector('button').click()")
    browser.run("document.querySelector('#flag input').value = 'motion'")
    browser.run("(window.real = fetch, window.fetch = async () => { throw new TypeError(); }, null)")
    browser.run("document.querySelector('#flag button[type=submit]').click()")
    browser.wait_for("document.getElementById('flag-failed').textContent.startsWith('No answer came')")
    assert browser.run("document.getElementById('flag').open")
    browser.run("(window.fetch = window.real, null)")
    browser.run("document.querySelector('#flag button[type=submit]').click()")
    browser.wait_for("!document.getElementById('flag').open")
    assert study.image_info("phantom_03")["flagged"] == "motion"
    browser.wait_for(f"{row}.textContent.includes('flagged: motion')")
    browser.run(f"{row}.querySelector('button').click()")
    browser.wait_for(f"{row}.textContent.includes('unlabelled')")


@pytest.mark.slow
def test_the_focus_goes_to_the_next_row_where_its_own_leaves_the_table(study: Server, browser: Browser) -> None:
    browser.run(
        "(s => (s.value = 'unlabelled', s.dispatchEvent(new Event('change'))))(document.querySelector('#status'))"
    )
    rows = "[...document.querySelectorAll('#images tbody tr')]"
    browser.wait_for(f"{rows}.every((row) => row.textContent.includes('unlabelled')) && {rows}.length > 2")
    first, second = browser.run(f"{rows}.slice(0, 2).map((row) => row.cells[1].textContent)")
    browser.run(f"{rows}[0].querySelector('button').focus()")
    study.request("POST", "/svgd/flag", params={"image": first}, json={"reason": "motion"})
    browser.wait_for(f"{rows}[0].cells[1].textContent === {second!r}")
    assert browser.run(f"document.activeElement === {rows}[0].querySelector('button')")
    study.request("POST", "/svgd/flag", params={"image": first}, json={"reason": None})


@pytest.mark.slow
def test_a_label_that_somebody_else_saves_appears_by_itself_and_the_scroll_stays(
    study: Server, browser: Browser
) -> None:
    browser.run("scrollTo(0, 300)")
    row = "[...document.querySelectorAll('#images tbody tr')].find((row) => row.textContent.includes('phantom_02'))"
    browser.run(f"(window.before = {row}).querySelector('button').focus()")
    study.save_label("phantom_02", reference("phantom_02"))
    browser.wait_for(f"{row}.cells[2].textContent.startsWith('labelled')")
    assert browser.run(f"window.before === {row}"), "the row is the same element"
    assert browser.run(f"document.activeElement === {row}.querySelector('button')")
    assert browser.run("scrollY") == 300


@pytest.mark.slow
def test_a_training_is_started_followed_and_stopped_from_the_page(study: Server, browser: Browser) -> None:
    status = "document.getElementById('training-status').textContent"
    browser.run("document.getElementById('start').click()")
    browser.wait_for(f"/^Training model version 1: step [1-9]/.test({status})", seconds=300)
    browser.wait_for("/Loss.*Time left/.test(document.getElementById('training-numbers').textContent)")
    assert browser.run("document.getElementById('start').ariaDisabled") == "true"
    for path in ("/train/", "/train/svgd"):  # OHIF's panel, and the page in another window
        again = requests.post(f"{study.address}{path}", json={}, timeout=60)
        assert (again.status_code, again.json()["detail"][:29]) == (429, "a training is running already")
    browser.run("document.getElementById('stop').click()")
    browser.wait_for(f"{status}.includes('was stopped')")
    study.wait_training()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "sentence"),
    [(200, "Something other than the server answers"), (502, "The server does not answer"), (500, "refused (500)")],
)
def test_a_proxys_page_in_the_place_of_an_answer_is_told_and_outlived(
    browser: Browser, status: int, sentence: str
) -> None:
    notice = "document.getElementById('notice').textContent"
    answer = f"new Response('<h1>Log in</h1>', {{ status: {status} }})"
    browser.run(f"(window.real = fetch, window.fetch = async () => {answer}, null)")
    browser.run("document.querySelector('#images th[data-column=score] button').click()")
    browser.wait_for(f"{notice}.includes('{sentence}')")
    browser.run("(window.fetch = window.real, null)")
    browser.wait_for(f"{notice} === ''", seconds=30)


@pytest.mark.slow
def test_an_image_is_held_and_a_second_annotator_is_told_so(study: Server) -> None:
    def hold(client: str, image: str) -> Any:
        answer = study.request("POST", "/svgd/hold", params={"image": image}, json={"client_id": client})
        return answer.json()

    free = "phantom_03"
    fine = {"held_by": None, "labelled": False, "flagged": None, "unusable": None, "version": None}
    assert hold("ann", free) == fine
    assert hold("bob", free) == {**fine, "held_by": "ann"}
    assert hold("bob", "phantom_01") == {**fine, "labelled": True}
    study.request("POST", "/svgd/flag", params={"image": free}, json={"reason": "motion"})
    assert hold("ann", free) == {**fine, "flagged": "motion"}
    study.request("POST", "/svgd/flag", params={"image": free}, json={"reason": None})
    unknown = requests.post(f"{study.address}/svgd/hold", params={"image": "none"}, json={}, timeout=60)
    assert unknown.status_code == 404


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 768, 940])
def test_it_fits_a_phone_and_a_tablet_with_the_names_that_dicom_gives(
    study: Server, tmp_path: Path, width: int
) -> None:
    with Browser(tmp_path / "profile", width=width, dark=True) as browser:
        browser.open(f"{study.address}/svgd/")
        browser.wait_for("document.querySelectorAll('#images tbody tr').length")
        assert browser.run("document.documentElement.scrollWidth") <= width
        uid = "1.2.826.0.1.3680043.8.498." + "1234567890" * 3 + "12345678"
        browser.run(f"document.getElementById('flag-name').textContent = '{uid}'")
        browser.run("document.getElementById('flag').showModal()")
        assert browser.run("(d => d.scrollWidth <= d.clientWidth)(document.getElementById('flag'))")
        assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 26)"
        assert browser.errors == []
