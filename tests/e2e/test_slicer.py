"""3D Slicer's MONAI Label module replayed request by request: what it sends, and what it makes of the answers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
import requests
from monailabel.client import MONAILabelClient
from monailabel.client.client import MONAILabelClientException
from numpy.typing import NDArray
from tests.e2e.server import PHANTOMS, SAMPLE, STRUCTURES, Server, copy_sample, itk, reference, voxels

pytestmark = pytest.mark.slow

Segments = list[tuple[str, NDArray[np.bool_]]]
# Never sent, but counted.
LEFT_OUT = ("background", "foreground_scribbles", "background_scribbles")
UNLABELLED = [phantom for phantom in PHANTOMS if reference(phantom).exists()]


class Module:
    """The module's own steps, in its order, with its settings ``fileExtension`` and ``allowOverlappingSegments``."""

    def __init__(self, server: Server, client: str, extension: str = ".nii.gz", *, overlapping: bool = False) -> None:
        self.folder = server.folder / client
        self.folder.mkdir(exist_ok=True)
        self.client = MONAILabelClient(server.address, tmpdir=str(self.folder), client_id=client)
        self.extension, self.overlapping = extension, overlapping
        self.info: dict[str, Any] = {}
        self.sample: dict[str, Any] = {}
        self.said: dict[str, Any] = {}
        """Beside the last result."""

    def fetch_info(self) -> None:
        assert not self.client.auth_enabled()
        self.info = self.client.info()
        assert not self.info.get("config"), "the module would ask for a newer server"
        first = next(iter(self.info["train_stats"].values()))
        assert first.get("best_metric", 0) * 100 >= 0, "the module's accuracy bar takes numbers only"

    def params(self, section: str, name: str | None) -> dict[str, Any]:
        """The options table, of whose choices the first is sent."""
        config = self.info[section].get(name, {}).get("config", {})
        return {key: value[0] if isinstance(value, list) else value for key, value in config.items()}

    def next_sample(self) -> tuple[NDArray[Any], Segments]:
        """The button; the module then takes the first model that has the first label, and runs it."""
        strategy = next(iter(self.info["strategies"]))
        self.sample = self.client.next_sample(strategy, self.params("strategies", strategy))
        assert Path(self.sample["path"]).exists()
        model = next(
            name for label in self.info["labels"] for name, m in self.info["models"].items() if label in m["labels"]
        )
        return itk.GetArrayFromImage(itk.ReadImage(self.sample["path"])).transpose(), self.segment(model)

    def segment(self, model: str) -> Segments:
        """The i-th name of the answer becomes the segment with the value i + 1."""
        params = {**self.params("models", model), "result_extension": ".nrrd", "result_dtype": "uint8"}
        file, self.said = self.client.infer(model, self.sample["id"], params, session_id=self.session())
        names = [name for name, _ in sorted(self.said["label_names"].items(), key=lambda item: item[1])]
        array = itk.GetArrayFromImage(itk.ReadImage(file)).transpose()
        return [(name, array == position) for position, name in enumerate(names, start=1)]

    def session(self) -> str | None:
        """The session of an image that the server does not have."""
        if not self.sample.get("session"):
            return None
        if not self.sample.get("session_id") or not self.client.get_session(self.sample["session_id"]):
            self.sample["session_id"] = self.client.create_session(self.volume_file())["session_id"]
        return str(self.sample["session_id"])

    def volume_file(self) -> str:
        """The volume of the scene, written with the extension of the settings, .seg.nrrd too."""
        file = str(self.folder / f"volume{self.extension}")
        image = itk.ReadImage(self.sample["volume"])
        if self.extension == ".seg.nrrd":
            itk.WriteImage(image, file.replace(".seg", ""))
            Path(file.replace(".seg", "")).rename(file)
        else:
            itk.WriteImage(image, file)
        return file

    def save(self, segments: Segments, values: list[int] | None = None) -> dict[str, Any]:
        """The button "Submit Label"; ``values`` are those inside the module's segmentation, 1 to n at first."""
        if self.sample.get("session"):
            self.client.upload_image(self.volume_file(), self.sample["id"])
            self.sample["session"] = False
        info = [
            {"name": name, "idx": position}
            for position, (name, _) in enumerate(segments, start=1)
            if name not in LEFT_OUT
        ]
        if self.extension == ".seg.nrrd" and self.overlapping:
            file = self.segmentation(segments, values or list(range(1, len(segments) + 1)))
        else:
            file = self.label_map([mask for name, mask in segments if name not in LEFT_OUT])
        return dict(self.client.save_label(self.sample["id"], str(file), params={"label_info": info}))

    def label_map(self, masks: list[NDArray[np.bool_]]) -> Path:
        """The segments that are sent, numbered anew in their order, on the volume's grid; the later one wins."""
        file = self.folder / f"label{self.extension}"
        merged = merge(masks, range(1, len(masks) + 1))
        if self.extension == ".nii.gz":
            nibabel.save(nibabel.Nifti1Image(merged, self.affine()), file)
        else:
            nrrd.write(str(file), merged, self.header())
        return file

    def segmentation(self, segments: Segments, values: list[int]) -> Path:
        """The whole segmentation with its names and colours, as Slicer writes it: one layer where nothing overlaps."""
        file = self.folder / f"segmentation{self.extension}"
        masks = [mask for _, mask in segments]
        header = self.header()
        overlapping = np.sum(masks, axis=0).max() > 1
        for number, ((name, _), value) in enumerate(zip(segments, values, strict=True)):
            header |= {
                f"Segment{number}_ID": f"Segment_{number + 1}",
                f"Segment{number}_Name": name,
                f"Segment{number}_Color": "0.5 0.68 0.5",
                f"Segment{number}_LabelValue": "1" if overlapping else str(value),
                f"Segment{number}_Layer": str(number) if overlapping else "0",
                f"Segment{number}_Extent": " ".join(f"0 {n - 1}" for n in masks[0].shape),
                f"Segment{number}_Tags": "Segmentation.Status:inprogress|",
            }
        header |= {
            "Segmentation_MasterRepresentation": "Binary labelmap",
            "Segmentation_ContainedRepresentationNames": "Binary labelmap|Closed surface|",
            "Segmentation_ReferenceImageExtentOffset": "0 0 0",
        }
        if overlapping:
            header["kinds"] = ["list", *header["kinds"]]
            header["space directions"] = np.vstack([np.full(3, np.nan), header["space directions"]])
            nrrd.write(str(file), np.stack(masks).astype(np.uint8), header)
        else:
            nrrd.write(str(file), merge(masks, values), header)
        return file

    def affine(self) -> NDArray[np.float64]:
        image = nibabel.load(self.sample.get("volume") or self.sample["path"])
        assert isinstance(image, nibabel.Nifti1Image)
        affine: NDArray[np.float64] = image.affine
        return affine

    def header(self) -> dict[str, Any]:
        affine = np.diag([-1, -1, 1, 1]) @ self.affine()
        return {
            "space": "left-posterior-superior",
            "kinds": ["domain", "domain", "domain"],
            "space directions": affine[:3, :3].T,
            "space origin": affine[:3, 3],
            "encoding": "gzip",
        }

    def train(self, model: str | None, **options: Any) -> None:
        """As the setting "Auto-Update Model" does after each save: what runs is stopped, then it starts anew."""
        if self.client.train_status(check_if_running=True):
            self.client.train_stop()
        self.client.train_start(model, {**self.params("trainers", model), **options})


def merge(masks: list[NDArray[np.bool_]], values: Any) -> NDArray[np.uint8]:
    merged = np.zeros(masks[0].shape, np.uint8)
    for mask, value in zip(masks, values, strict=True):
        merged[mask] = value
    return merged


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A study with a committee of a short training."""
    server = Server(tmp_path_factory.mktemp("slicer"), {"task": "sample"})
    copy_sample(server.studies)
    try:
        server.start().train(steps=40)
        server.wait_scoring()
        yield server
    finally:
        server.kill()


def truth(image: str) -> list[NDArray[np.bool_]]:
    values = voxels(reference(image))
    return [values == 1, values == 2]


def stored(server: Server, image: str) -> NDArray[np.uint8]:
    return voxels(server.studies / "labels" / "final" / f"{image}.nii.gz")


def test_next_sample_comes_with_its_segmentation_under_the_names_of_the_task(server: Server) -> None:
    module = Module(server, "shown")
    module.fetch_info()
    image, segments = module.next_sample()
    assert [name for name, _ in segments] == module.info["labels"] == list(STRUCTURES)
    assert all(mask.shape == image.shape and mask.any() for _, mask in segments)
    for name, mask in segments:
        assert module.said["volumes"][name]["ml"] == pytest.approx(mask.sum() * 0.001), "phantoms have voxels of 1 mm"
        assert module.said["volumes"][name]["lowest"] < module.said["volumes"][name]["highest"]
    assert "unlike_labelled" not in module.said, "four labelled images are too few to say"
    # Where the image's file is not on the annotator's disk, it is downloaded.
    answer = requests.get(f"{server.address}/datastore/image", params={"image": module.sample["id"]}, timeout=60)
    assert answer.content == Path(module.sample["path"]).read_bytes()


def test_where_the_committee_is_unsure_comes_as_segments_of_their_own(server: Server) -> None:
    module = Module(server, "unsure")
    module.fetch_info()
    assert list(module.info["models"]) == ["svgd", "svgd_uncertainty"]
    assert module.info["labels"] == list(STRUCTURES), "bands are no anatomy"
    image, segments = module.next_sample()
    segmented = module.said
    bands = module.segment("svgd_uncertainty")
    assert [name for name, _ in bands] == ["unsure", "very unsure"]
    doubt = merge([mask for _, mask in bands], (1, 2))
    assert doubt.shape == image.shape
    assert 0 < np.count_nonzero(doubt) < doubt.size
    assert module.said["model_version"] == segmented["model_version"]
    assert module.said["thresholds"] == pytest.approx({"unsure": 0.5004, "very unsure": 0.673}, abs=1e-4)
    first = module.said["look_first"]
    sums = doubt.sum(axis=tuple(axis for axis in range(3) if axis != first["axis"]))
    assert first["index"] == int(sums.argmax())
    assert first["words"].startswith(f"{first['plane']} slice {first['index'] + 1} of {len(sums)}, counted from")

    before = server.label_bytes()
    with pytest.raises(MONAILabelClientException) as refused:
        module.save([*segments, *bands])
    assert "cover the structures beneath; delete these segments and save again" in refused.value.msg
    assert server.label_bytes() == before
    module.save(segments)
    saved = stored(server, module.sample["id"])
    np.testing.assert_array_equal(saved, merge([mask for _, mask in segments], (1, 2)))


def test_bands_of_doubt_cannot_be_stored_as_a_label(server: Server) -> None:
    before = server.label_bytes()
    for tag in ("final", "original"):
        with pytest.raises(MONAILabelClientException) as refused:
            server.slicer().infer("svgd_uncertainty", UNLABELLED[0], {"save_label": True, "label_tag": tag})
        assert "is no label" in refused.value.msg
    assert server.label_bytes() == before
    assert not (server.studies / "labels" / "original" / f"{UNLABELLED[0]}.nii.gz").exists()


def test_a_stored_segmentation_is_shown_before_the_model_runs(server: Server) -> None:
    module = Module(server, "original")
    image = UNLABELLED[1]
    file, _ = module.client.infer("svgd", image, {"save_label": True, "result_extension": ".nrrd"})
    entry = module.client.datastore()["objects"][image]["labels"]["original"]
    assert list(entry["info"]["params"]["label_names"]) == list(STRUCTURES)
    shown = module.client.download_label(image, "original")
    assert shown.endswith(".nii.gz")
    np.testing.assert_array_equal(voxels(Path(shown)), itk.GetArrayFromImage(itk.ReadImage(file)).transpose())


@pytest.mark.parametrize(
    ("extension", "overlapping"),
    [(".nii.gz", False), (".nrrd", False), (".seg.nrrd", False), (".seg.nrrd", True)],
)
@pytest.mark.parametrize("change", ["none", "deleted", "renamed", "added", "reordered", "scribbles"])
def test_segments_are_told_apart_by_name(server: Server, extension: str, overlapping: bool, change: str) -> None:
    image = UNLABELLED[2]
    module = Module(server, "editor", extension, overlapping=overlapping)
    module.sample = {"id": image, "path": str(server.studies / f"{image}.nii.gz")}
    anterior, posterior = truth(image)
    corner = np.zeros_like(anterior)
    corner[:3, :3, :3] = True
    # The segments, and their values inside Slicer's own segmentation, which an edit does not number anew.
    segments, values = {
        "none": ([("anterior", anterior), ("posterior", posterior)], [1, 2]),
        "deleted": ([("posterior", posterior)], [2]),
        "renamed": ([(" Anterior ", anterior), ("POSTERIOR", posterior)], [1, 2]),
        "added": ([("anterior", anterior), ("posterior", posterior), ("vessel", corner)], [1, 2, 3]),
        "reordered": ([("posterior", posterior), ("anterior", anterior)], [2, 1]),
        "scribbles": (
            [("background_scribbles", corner & False), ("anterior", anterior), ("posterior", posterior)],
            [3, 1, 2],
        ),
    }[change]
    module.save(segments, values)
    expected = [anterior & (change != "deleted"), posterior]
    np.testing.assert_array_equal(stored(server, image), merge(expected, (1, 2)))
    info = server.slicer().datastore()["objects"][image]["labels"]["final"]["info"]
    assert info["missing"] == (["anterior"] if change == "deleted" else [])
    assert ("vessel" in info["ignored"]) is (change == "added")


def test_a_renamed_segment_that_the_task_does_not_know_is_refused_with_its_names(server: Server) -> None:
    image = UNLABELLED[2]
    module = Module(server, "renamed")
    module.sample = {"id": image, "path": str(server.studies / f"{image}.nii.gz")}
    anterior, posterior = truth(image)
    with pytest.raises(MONAILabelClientException) as refused:
        module.save([("Segment_1", anterior), ("posterior", posterior)])
    assert "'Segment_1', which the task does not know, and no segment 'anterior'" in refused.value.msg


def test_overlapping_segments_are_refused_and_change_nothing(server: Server) -> None:
    image = UNLABELLED[2]
    module = Module(server, "overlap", ".seg.nrrd", overlapping=True)
    module.sample = {"id": image, "path": str(server.studies / f"{image}.nii.gz")}
    anterior, posterior = truth(image)
    before = server.label_bytes()
    with pytest.raises(MONAILabelClientException) as refused:
        module.save([("anterior", anterior), ("posterior", posterior | anterior)])
    assert "segments overlap; let them not overlap and save again" in refused.value.msg
    with pytest.raises(MONAILabelClientException) as refused:
        module.save([("anterior", anterior), ("posterior", posterior), ("unsure", anterior)])
    assert "delete these segments and save again" in refused.value.msg
    assert server.label_bytes() == before


@pytest.mark.parametrize("extension", [".nii.gz", ".nrrd", ".seg.nrrd"])
def test_an_image_from_the_annotators_side_is_segmented_then_saved_into_the_study(
    server: Server, extension: str
) -> None:
    module = Module(server, "guest", extension)
    module.fetch_info()
    # A volume of another study, in a scene whose volumes have the names that Slicer gives to DICOM series.
    name = f"3: T1 FLAIR {extension.replace('.', '')}"
    source = SAMPLE / f"{UNLABELLED[3]}.nii.gz"
    module.sample = {"id": name, "session": True, "volume": str(source)}
    segments = module.segment("svgd")
    assert name not in server.slicer().datastore()["objects"], "a session leaves the study as it was"
    bands = module.segment("svgd_uncertainty")
    assert all(mask.shape == bands[0][1].shape for _, mask in [*segments, *bands])
    np.testing.assert_array_equal(
        merge([mask for _, mask in segments], (1, 2)), np.asarray(server.infer(UNLABELLED[3])[0].dataobj)
    )
    total = module.info["datastore"]
    module.save(segments)
    module.fetch_info()
    assert module.info["datastore"]["total"] == total["total"] + 1
    assert module.info["datastore"]["completed"] == total["completed"] + 1
    np.testing.assert_array_equal(stored(server, name), merge([mask for _, mask in segments], (1, 2)))
    assert module.segment("svgd"), "from now on it is an image of the study"


def test_a_session_that_has_ended_is_told_so_and_not_taken_for_an_image(server: Server) -> None:
    client = server.slicer()
    session = client.create_session(str(SAMPLE / f"{UNLABELLED[3]}.nii.gz"))["session_id"]
    client.remove_session(session)
    for image in ("volume", UNLABELLED[3]):
        with pytest.raises(MONAILabelClientException) as refused:
            client.infer("svgd", image, {}, session_id=session)
        assert "Status: 404" in refused.value.msg
        assert "this session is not known, or has ended: send the image again" in refused.value.msg


def test_training_is_stopped_and_started_again_after_each_save(server: Server) -> None:
    module = Module(server, "impatient")
    module.fetch_info()
    before = server.infer(UNLABELLED[0])
    labels = server.label_bytes()
    saved = {}
    for options in ({"steps": 100_000}, {"steps": 100_000}, {"steps": 2}):
        module.next_sample()
        image = module.sample["id"]
        module.save(list(zip(STRUCTURES, truth(image), strict=True)))
        saved[image] = merge(truth(image), (1, 2))
        module.fetch_info()
        module.train("svgd", **options)
        assert server.infer(UNLABELLED[0])[1]["model_version"] == before[1]["model_version"]
    assert len(saved) == 3
    server.wait_training()
    assert server.train_stats()["status"] == "done"
    assert set(saved) - set(server.train_stats()["validation_list"]) <= set(server.train_stats()["training_list"])
    assert server.infer(UNLABELLED[0])[1]["model_version"] == before[1]["model_version"] + 1
    kept = server.label_bytes()
    assert labels.items() <= kept.items()
    for image, values in saved.items():
        np.testing.assert_array_equal(stored(server, image), values)


def test_the_trainer_that_the_module_preselects_is_all_of_them(server: Server) -> None:
    module = Module(server, "trainer")
    module.fetch_info()
    module.train(None)
    server.wait_training_step()
    assert module.client.train_stop()["status"] == "STOPPED"
    server.wait_training()
