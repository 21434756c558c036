"""An annotator's work in OHIF with real clicks, one test after the other: the first trains what the others use."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from tests.dicom.conftest import free_port
from tests.e2e.server import Server
from tests.viewers.browser import Browser, chromium
from tests.viewers.site import ONE_STUDY, PHANTOMS, TASK, Site

from svgd_label.server.dicom.orthanc import Orthanc
from svgd_label.server.start import StartError

pytestmark = pytest.mark.slow

NEXT = ".monaiLabelPanel button:has-text('Next Sample')"
COLOURS = """() => {
    const viewport = window.services.viewportGridService.getState().activeViewportId;
    return [1, 2].map(index => Array.from(window.services.segmentationService.getSegmentColor(viewport, '1', index)));
}"""
LAST_SEGMENT = """() => Math.max(
    ...Object.keys(window.services.segmentationService.getSegmentation('1').segments).map(Number))"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    chromium()
    folder = tmp_path_factory.mktemp("ohif")
    try:
        orthanc = Orthanc(folder / "orthanc", free_port())
    except StartError as error:
        pytest.skip(str(error))
    with orthanc.running():
        browser = Browser(folder / "pictures")
        site = Site(folder, orthanc, browser)
        try:
            site.server.start()
            site.server.wait_for(lambda: site.status()["total"] == len(PHANTOMS), "all series", seconds=60)
            yield site
        finally:
            browser.close()
            site.server.kill()


def test_the_whole_journey(site: Site) -> None:
    browser, server = site.browser, site.server

    # A study from OHIF's own list
    browser.open(f"{server.address}/ohif/")
    browser.click("text=Confirm and Hide")
    browser.picture("1 list")
    browser.run("await page.locator('tr', { hasText: 'DOE' }).first().click()")
    browser.click("a:has-text('MONAI Label')")
    site.connected()
    browser.picture("2 connected")
    assert browser.run("return page.inputValue('#monailabelServerURL')") == f"{server.address}/"

    # Back to the list, which OHIF shows without loading a page, and thought better of
    drawn = site.stroke("Brush", "anterior")
    ways = {
        "page.locator('[data-cy=return-to-work-list]').click()": "beforeunload",  # in the browser's own words
        "page.evaluate(() => history.back())": "Leave without submitting what you have drawn?",
    }
    for way, question in ways.items():
        browser.disagree(question, f"{way}.catch(() => {{}})")
        assert "/monai-label" in browser.run("return page.url()")
        np.testing.assert_array_equal(site.drawing().voxels, drawn.voxels)
    browser.wait("() => !document.querySelector('#svgd-bar').hidden")

    # An address that is none, typed into the panel's box
    browser.run("await page.fill('#monailabelServerURL', 'nonsense')")
    browser.press("Tab")
    site.said("its address is back in the box")
    assert browser.run("return page.inputValue('#monailabelServerURL')") == f"{server.address}/"
    browser.click(".settingsTable button")
    site.said("The panel is connected")

    # No committee yet, so an image of the first order is labelled by hand
    browser.click(".monaiLabelPanel .tab-label:has-text('Active Learning')")
    assert browser.run("return page.inputValue('.monaiLabelPanel .optionsTable select')") == "svgd"
    browser.picture("3 next sample")
    browser.click(NEXT)
    site.said("No model has ranked it yet")
    site.connected()
    first = site.drawing().series
    assert f"'id': '{first}'" in site.proposals()[-1]
    assert "for 'browser-" in site.proposals()[-1]
    assert "'from': 'first'" in site.proposals()[-1]

    drawn = site.stroke("Brush", "anterior")
    assert drawn.count(1) > 0 and drawn.count(2) == 0
    both = site.stroke("Brush", "posterior")
    assert both.count(2) > 0
    erased = site.stroke("Eraser", "posterior")
    assert erased.count(2) < both.count(2)
    browser.click("#svgd-bar button:has-text('Undo')")
    site.said("taken back")
    np.testing.assert_array_equal(site.drawing().voxels, both.voxels)
    browser.picture("4 drawn")

    # A server that is away for a moment
    browser.run("await page.route('**/datastore/label*', route => route.abort(), { times: 1 })")
    browser.click("#svgd-bar button:has-text('Submit label')")
    site.said("The server does not answer. Nothing is lost")
    browser.picture("5 not sent")
    np.testing.assert_array_equal(site.drawing().voxels, both.voxels)
    assert site.status()["completed"] == 0
    browser.click("#svgd-bar button:has-text('Submit label')")
    site.said("Label counted: 1 of 5 images are labelled.")
    browser.picture("6 submitted")
    assert site.status()["completed"] == 1
    both.assert_lies_as(site.label(first))

    # Training, asked for in the panel
    browser.click(".monaiLabelPanel .tab-label:has-text('Active Learning')")
    browser.click("button:has-text('Update Model')")
    server.wait_for(server.train_stats, "the training's start")
    browser.picture("7 training")
    server.wait_training()
    assert server.train_stats()["status"] == "done", server.log_tail()

    # The next one is ranked, and not the one that is done; by keyboard
    browser.run("await page.focus(\"#svgd-bar button:has-text('Next sample')\")")
    browser.press("Enter")
    site.said("with model version 1")
    site.connected()
    second = site.drawing().series
    assert second != first
    assert "'from': 'queue'" in site.proposals()[-1]
    proposed = site.segment()
    assert proposed.count(1) + proposed.count(2) > 0
    proposed.assert_lies_as(server.infer(second)[0])
    site.said(" ml (")
    browser.picture("8 segmented")

    # Where the committee is unsure lies over the image, and the drawing stays what it is
    browser.wait(f"() => ({COLOURS})()[0][0] === 230")  # painted a moment after the panel's own colours
    colours = browser.inside(COLOURS)
    browser.click("#svgd-bar button:has-text('Where unsure')")
    site.said("Yellow: unsure, magenta: very unsure. Most of it: axial slice")
    assert browser.inside(COLOURS) == colours, "what is drawn keeps its colours"
    doubt = site.drawing("svgd-doubt")
    doubt.voxels[doubt.voxels > 0] -= browser.inside(LAST_SEGMENT)
    doubt.assert_lies_as(server.infer(second, "svgd_uncertainty")[0])
    np.testing.assert_array_equal(site.drawing().voxels, proposed.voxels)
    browser.picture("9 where unsure")
    browser.run("await page.locator('.viewport-element').first().dblclick()")  # one plane alone
    browser.wait("() => document.querySelectorAll('.viewport-element').length === 1")
    doubtful = site.drawing("svgd-doubt").voxels
    alone = site.stroke("Brush", "anterior")
    np.testing.assert_array_equal(site.drawing("svgd-doubt").voxels, doubtful)
    assert alone.count(1) > proposed.count(1)
    browser.run("await page.locator('.viewport-element').first().dblclick()")
    browser.wait("() => document.querySelectorAll('.viewport-element').length === 3")
    corrected = site.stroke("Brush", "posterior")
    browser.picture("10 corrected")
    browser.click("#svgd-bar button:has-text('Where unsure')")
    browser.wait("() => !window.services.segmentationService.getSegmentation('svgd-doubt')")
    browser.click("#svgd-bar button:has-text('Submit label')")
    site.said("Label counted: 2 of 5 images are labelled.")
    corrected.assert_lies_as(site.label(second))
    info = server.request("GET", "/datastore/label/info", params={"label": second, "tag": "final"}).json()
    assert info["client_id"].startswith("browser-")

    # A label that is there already is not replaced by accident; the page's link shows this series and no other
    site.follow_link(first)
    site.said("This image has a label.")
    assert site.drawing().series == first
    again = site.stroke("Brush", "posterior")
    browser.disagree("Put yours in its place?", "await page.click(\"#svgd-bar button:has-text('Submit label')\")")
    site.said("Nothing was submitted.")
    both.assert_lies_as(site.label(first))
    browser.click("#svgd-bar button:has-text('Submit label')")
    site.said("Label counted: 2 of 5 images are labelled.")
    again.assert_lies_as(site.label(first))

    # Chance, for who really chooses it; the choice outlives the page
    browser.click(".monaiLabelPanel .tab-label:has-text('Active Learning')")
    browser.run("await page.selectOption('.monaiLabelPanel .optionsTable select', 'random')")
    browser.click(NEXT)
    site.said("Chosen at random")
    site.connected()
    assert site.drawing().series not in (first, second)
    assert "'from': 'random'" in site.proposals()[-1]
    assert browser.run("return page.inputValue('.monaiLabelPanel .optionsTable select')") == "random"
    assert browser.errors() == []


@pytest.mark.parametrize("name", ["phantom_01", "phantom_02"])
def test_slices_lie_right_whichever_way_they_are_numbered(site: Site, name: str) -> None:
    site.open(name)
    shown = site.segment()
    assert shown.series == site.series[name]
    assert shown.count(1) + shown.count(2) > 0
    shown.assert_lies_as(site.server.infer(site.series[name])[0])


@pytest.mark.parametrize("name", ONE_STUDY)
def test_of_a_study_with_several_series_the_pages_link_shows_the_right_one(site: Site, name: str) -> None:
    site.follow_link(site.series[name])
    assert site.drawing().series == site.series[name]


def test_what_is_drawn_while_the_server_is_asked_counts_as_not_submitted(site: Site) -> None:
    browser = site.browser
    site.open("phantom_01")
    submitted = site.stroke("Brush", "anterior")
    browser.run("globalThis.going = []; await page.route(argument, route => going.push(route))", "**/datastore/label*")
    browser.click("#svgd-bar button:has-text('Submit label')")
    browser.run("while (!going.length) await page.waitForTimeout(50)")
    later = site.stroke("Brush", "posterior")
    browser.run(
        "await page.unroute(argument); for (const route of going) await route.continue()", "**/datastore/label*"
    )
    site.said("Label counted")
    submitted.assert_lies_as(site.label(submitted.series))
    browser.disagree("Go on without submitting", "await page.click(\"#svgd-bar button:has-text('Next sample')\")")
    site.said("Your drawing is still here")
    browser.click("#svgd-bar button:has-text('Submit label')")
    site.said("Label counted")
    later.assert_lies_as(site.label(later.series))

    browser.click("#svgd-bar button:has-text('Undo')")  # the server has what was taken back
    site.said("taken back")
    browser.disagree("Go on without submitting", "await page.click(\"#svgd-bar button:has-text('Next sample')\")")
    assert browser.inside("() => document.activeElement.textContent") == "Next sample"
    browser.click("#svgd-bar button:has-text('Submit label')")
    site.said("Label counted")

    # Before the server has said which image is next
    browser.run("globalThis.going = []; await page.route(argument, route => going.push(route))", "**/activelearning/*")
    browser.click("#svgd-bar button:has-text('Next sample')")
    browser.run("while (!going.length) await page.waitForTimeout(50)")
    last = site.stroke("Brush", "posterior")
    browser.disagree(
        "Go on without submitting",
        "await page.unroute('**/activelearning/*'); for (const route of going) await route.continue()",
    )
    site.said("Your drawing is still here")
    np.testing.assert_array_equal(site.drawing().voxels, last.voxels)
    browser.click("#svgd-bar button:has-text('Submit label')")
    site.said("Label counted")
    last.assert_lies_as(site.label(last.series))


def test_what_speaks_against_an_image_is_said_and_a_login_is_no_answer(site: Site) -> None:
    image = site.series["phantom_03"]
    site.server.request("POST", "/svgd/flag", params={"image": image}, json={"reason": "motion"})
    site.open("phantom_03")
    site.said("This image is flagged (motion)")
    site.server.request("POST", "/svgd/flag", params={"image": image}, json={"reason": None})
    site.server.request("POST", "/svgd/hold", params={"image": image}, json={"client_id": "ann"})
    drawn = site.stroke("Brush", "anterior")
    login = "route => route.fulfill({ contentType: 'text/html', body: '<h1>Log in</h1>' })"
    site.browser.run(f"await page.route('**/datastore/label*', {login}, {{ times: 1 }})")
    site.browser.click("#svgd-bar button:has-text('Submit label')")
    site.said("Your login has probably ended")
    np.testing.assert_array_equal(site.drawing().voxels, drawn.voxels)
    site.browser.click("#svgd-bar button:has-text('Submit label')")
    site.said("Somebody else (ann) has this image in hand")
    drawn.assert_lies_as(site.label(image))


def test_a_brush_draws_what_the_bar_shows_whatever_the_panel_begins_with(site: Site) -> None:
    """The panel's segments are sorted: 'unsure', of another model, comes before 'ventricle'."""
    folder = site.server.folder / "ventricle"
    folder.mkdir()
    (folder / "task.yaml").write_text(TASK.replace("[anterior, posterior]", "[ventricle]"), encoding="utf-8")
    settings = {"task": str(folder / "task.yaml"), "state": str(folder / "state"), "validation": "none"}
    server, browser = Server(folder, settings, source=site.orthanc.url), site.browser
    try:
        server.start()
        image = site.series["phantom_01"]
        server.wait_for(lambda: "StudyInstanceUID" in server.image_info(image), "the series", seconds=60)
        study = server.image_info(image)["StudyInstanceUID"]
        browser.open(f"{server.address}/ohif/")
        browser.click("text=Confirm and Hide")
        browser.open(f"{server.address}/ohif/monai-label?StudyInstanceUIDs={study}")
        browser.wait("() => document.querySelector('#svgd-bar select')?.selectedOptions[0]?.text === 'ventricle'")
        browser.click("#svgd-bar button:has-text('Brush')")
        box = browser.run("return page.locator('.viewport-element').first().boundingBox()")
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        browser.drag((x - 15, y), (x + 15, y))
        site.server.wait_for(lambda: site.drawing().voxels.any(), "a stroke", seconds=60)
        browser.click("#svgd-bar button:has-text('Submit label')")
        site.said("Label counted")
    finally:
        server.kill()


def test_a_real_series_is_found_segmented_and_its_label_counted(site: Site, dicom_series: Path) -> None:
    series = str(pydicom.dcmread(next(dicom_series.glob("*.dcm")), stop_before_pixels=True).SeriesInstanceUID)
    before = site.status()
    site.orthanc.load(dicom_series)
    site.server.wait_for(lambda: site.status()["total"] > before["total"], "the new series", seconds=60)
    site.series["real"] = series
    site.open("real")
    shown = site.segment()
    assert shown.series == series
    shown.assert_lies_as(site.server.infer(series)[0])
    drawn = site.stroke("Brush", "anterior")
    site.browser.picture("11 real series")
    site.browser.click("#svgd-bar button:has-text('Submit label')")
    site.said("Label counted")
    assert site.status()["completed"] == before["completed"] + 1
    drawn.assert_lies_as(site.label(series))
