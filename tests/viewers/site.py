"""What the journeys in OHIF go through: Orthanc with phantoms, the server on it, an annotator's browser."""

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from pydicom.uid import generate_uid
from tests.e2e.server import Server
from tests.viewers.browser import Browser
from tests.viewers.phantoms import phantom_series

from svgd_label.server.dicom.orthanc import Orthanc

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
SAID, TABS = "#svgd-bar output", ".monaiLabelPanel .tabs"
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
