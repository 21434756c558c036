"""An annotator's work in OHIF with real clicks: next sample, segmentation, brush, "Submit label", training, again."""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.uid import generate_uid
from tests.dicom.conftest import free_port
from tests.e2e.server import Server
from tests.viewers.browser import Browser, chromium
from tests.viewers.phantoms import phantom_series

from svgd_label.server.dicom.orthanc import Orthanc
from svgd_label.server.start import StartError

pytestmark = pytest.mark.slow

PHANTOMS = ("phantom_01", "phantom_02", "phantom_03", "phantom_04", "phantom_05")
DOWNWARDS = ("phantom_02", "phantom_04")  # their slices are numbered from head to feet
ONE_STUDY = ("phantom_04", "phantom_05")
TASK = """\
name: sample
modality: MR
labels: [anterior, posterior]
window: [32, 48, 32]
network: {name: UNet, arguments: {channels: [4, 8, 16], strides: [2, 2]}}
particles: 2
steps: 60
batch: 2
learning_rate: 0.01
queries: 2
"""
SAID, NEXT, TABS = "#svgd-bar output", ".monaiLabelPanel button:has-text('Next Sample')", ".monaiLabelPanel .tabs"
DRAWING = """segmentation => {
    const volume = window.services.segmentationService.getLabelmapVolume(segmentation);
    const place = id => window.cornerstone.metaData.get('imagePlaneModule', id).imagePositionPatient;
    return {
        voxels: Array.from(volume.voxelManager.getCompleteScalarDataArray()),
        shape: volume.dimensions,
        positions: volume.imageIds.map(place),
        series: window.cornerstone.metaData.get('generalSeriesModule', volume.imageIds[0]).seriesInstanceUID,
    };
}"""


COLOURS = """() => {
    const viewport = window.services.viewportGridService.getState().activeViewportId;
    return [1, 2].map(index => Array.from(window.services.segmentationService.getSegmentColor(viewport, '1', index)));
}"""
LAST_SEGMENT = """() => Math.max(
    ...Object.keys(window.services.segmentationService.getSegmentation('1').segments).map(Number))"""


@dataclass
class Drawing:
    """The label map in the page, (X, Y, Z), where each slice lies (LPS mm), and whose it is."""

    voxels: NDArray[np.uint8]
    positions: list[list[float]]
    series: str

    def count(self, value: int) -> int:
        return int((self.voxels == value).sum())

    def assert_lies_as(self, image: nibabel.Nifti1Image) -> None:
        """Each slice equals the image's, which is found by its place in the patient."""
        values = np.asarray(image.dataobj).round().astype(np.uint8)
        for k, (x, y, z) in enumerate(self.positions):
            first = np.rint(np.linalg.inv(image.affine) @ [-x, -y, z, 1]).astype(int)
            assert tuple(first[:2]) == (0, 0), "the first pixel of a slice is the first voxel of a plane"
            np.testing.assert_array_equal(self.voxels[:, :, k], values[:, :, first[2]])


class Site:
    """Orthanc with phantoms, the server on it, and an annotator's browser."""

    def __init__(self, folder: Path, orthanc: Orthanc, browser: Browser) -> None:
        self.browser, self.orthanc = browser, orthanc
        (folder / "task.yaml").write_text(TASK, encoding="utf-8")
        study = generate_uid()
        self.series = {
            name: phantom_series(
                folder / name, name, downwards=name in DOWNWARDS, study=study if name in ONE_STUDY else None
            )
            for name in PHANTOMS
        }
        for name in PHANTOMS:
            orthanc.load(folder / name)
        self.server = Server(
            folder,
            {"task": str(folder / "task.yaml"), "state": str(folder / "state"), "validation": "none"},
            source=orthanc.url,
            environment={
                "MONAI_LABEL_DICOMWEB_CACHE_EXPIRY": "2",  # seconds between two looks at the DICOM server
            },
        )

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.server.request("GET", "/datastore/").json()
        return found

    def label(self, image: str) -> nibabel.Nifti1Image:
        """The final label as the server gives it out."""
        content = self.server.request("GET", "/datastore/label", params={"label": image, "tag": "final"}).content
        return nibabel.Nifti1Image.from_bytes(gzip.decompress(content))

    def open(self, name: str) -> None:
        """OHIF with one phantom, by its address."""
        study = self.server.image_info(self.series[name])["StudyInstanceUID"]
        self.browser.open(f"{self.server.address}/ohif/monai-label?StudyInstanceUIDs={study}")
        self.connected()

    def follow_link(self, series: str) -> None:
        """OHIF with one series, by the link that the page at /svgd/ has for it."""
        self.browser.open(f"{self.server.address}/svgd/")
        link = f"#images a:has-text('{series}')"
        self.browser.open(self.browser.run("return page.locator(argument).evaluate(link => link.href)", link))
        self.connected()

    def connected(self) -> None:
        """Until the panel has connected by itself and the bar offers the task's structures."""
        self.browser.run("await page.waitForSelector(argument)", TABS)
        self.browser.wait("() => document.querySelectorAll('#svgd-bar option').length === 2")

    def drawing(self, segmentation: str = "1") -> Drawing:
        found = self.browser.inside(DRAWING, segmentation)
        voxels = np.array(found["voxels"], np.uint8).reshape(found["shape"], order="F")
        return Drawing(voxels, found["positions"], found["series"])

    def segment(self) -> Drawing:
        """Presses "Run" and waits until the segmentation is shown."""
        self.browser.click(".modelSelector button")
        self.browser.run("await page.waitForSelector('text=Running Segmentation - Successful')")
        return self.drawing()

    def stroke(self, tool: str, segment: str) -> Drawing:
        """Drags once through the middle of the axial image; the drawing after that."""
        browser = self.browser
        browser.click(f"#svgd-bar button:has-text('{tool}')")
        browser.run("await page.selectOption('#svgd-bar select', { label: argument })", segment)
        before = self.drawing().voxels
        box = browser.run("return page.locator('.viewport-element').first().boundingBox()")
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        browser.drag((x - 15, y), (x + 15, y))
        self.server.wait_for(lambda: (self.drawing().voxels != before).any(), "a stroke", seconds=60)
        return self.drawing()

    def said(self, sentence: str) -> None:
        """Until the bar says it."""
        self.browser.wait(
            # There is none for a moment, when the page loads anew.
            "([bar, sentence]) => document.querySelector(bar)?.textContent.includes(sentence)",
            [SAID, sentence],
        )

    def proposals(self) -> list[str]:
        """The lines of the log that tell who was offered what."""
        return [line for line in self.server.log().splitlines() if "next sample for " in line]


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
