"""One study from the first request to the last label, on the phantoms, as 3D Slicer and OHIF ask for it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from tests.e2e.server import PHANTOMS, SAMPLE, Server, copy_sample, itk, mean_dice, reference, voxels

from svgd_label import checkpoint
from svgd_label.tasks import load_task

pytestmark = pytest.mark.slow

UNLABELLED = [phantom for phantom in PHANTOMS if reference(phantom).exists()]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("journey"), {"task": "sample", "lease": "0.2"})
    copy_sample(server.studies)
    try:
        yield server.start()
    finally:
        server.kill()


@pytest.fixture(scope="module")
def trained(server: Server) -> dict[str, Any]:
    """Statistics of one default training, asked for as the Slicer module does."""
    return server.train()


@pytest.fixture(scope="module")
def all_labelled(server: Server, trained: dict[str, Any]) -> list[dict[str, Any]]:
    """What next-sample answered, image by image, to an annotator who labelled until nothing was left."""
    server.wait_for(lambda: not server.leases(), "the end of all leases")
    answers = []
    while answer := server.next_sample("slicer"):
        answers.append(answer)
        assert len(answers) <= len(UNLABELLED), answers
        server.save_label(answer["id"], reference(answer["id"]))
    return answers


# Before the first training


def test_info_offers_our_names_first_and_structures_without_background(server: Server) -> None:
    info = server.slicer().info()
    assert info["labels"] == ["anterior", "posterior"]
    assert next(iter(info["models"])) == next(iter(info["trainers"])) == next(iter(info["strategies"])) == "svgd"
    assert list(info["scoring"]) == ["entropy_mi"]
    assert info["models"]["svgd"]["labels"] == {"anterior": 1, "posterior": 2}
    assert info["datastore"] == {"total": 12, "completed": 4, "label_tags": {"final": 4}}


def test_inference_without_a_committee_is_refused_with_a_sentence(server: Server) -> None:
    answer = server.ohif_infer(UNLABELLED[0])
    assert answer.status_code == 409
    assert "no trained committee" in answer.json()["detail"]


def test_before_scores_a_first_order_serves_and_two_clients_get_two_images(server: Server) -> None:
    first, second = server.next_sample("ann"), server.next_sample("bob")
    assert first["from"] == second["from"] == "first"
    assert first["id"] != second["id"]
    assert {first["id"], second["id"]} <= set(UNLABELLED)
    assert Path(first["path"]).samefile(server.studies / f"{first['id']}.nii.gz")
    again = server.next_sample("ann")
    assert again["id"] == first["id"], "within ten seconds it is the same image"
    # OHIF sends no client_id: it is known by its address.
    anonymous = server.request("POST", "/activelearning/svgd", json={}).json()
    assert anonymous["id"] not in {first["id"], second["id"]}


def test_random_stays_on_offer(server: Server) -> None:
    assert server.next_sample("ann", "random")["id"] in UNLABELLED


@pytest.mark.parametrize(
    ("params", "named"),
    [({"steps": 0}, "steps"), ({"learning_rate": "fast"}, "learning_rate"), ({"epochs": 3}, "epochs")],
)
def test_a_wrong_training_parameter_is_refused_by_name(server: Server, params: dict[str, Any], named: str) -> None:
    for path, body in (("/train/svgd", params), ("/train/", {"svgd": params})):
        answer = server.request("POST", path, json=body)
        assert answer.status_code == 400
        assert named in answer.json()["detail"]
    assert not server.slicer().train_status(check_if_running=True)


# After one default training


def test_one_default_training_segments_phantoms_it_has_not_seen(server: Server, trained: dict[str, Any]) -> None:
    scores = {}
    for phantom in UNLABELLED:
        result, params = server.infer(phantom)
        image = nibabel.load(server.studies / f"{phantom}.nii.gz")
        assert isinstance(image, nibabel.Nifti1Image)
        assert result.shape == image.shape
        np.testing.assert_allclose(result.affine, image.affine, atol=1e-4)
        assert params["model_version"] == 1
        assert params["label_names"] == {"anterior": 1, "posterior": 2}
        scores[phantom] = mean_dice(np.asarray(result.dataobj), voxels(reference(phantom)))
    print(scores)
    assert np.mean(list(scores.values())) >= 0.5, scores


def test_train_stats_tell_the_viewers_how_it_went(server: Server, trained: dict[str, Any]) -> None:
    task = load_task("sample")
    assert trained["epoch"] == trained["total_epochs"]
    assert trained["step"] == trained["steps"] == task.steps
    assert trained["seconds_left"] == 0
    assert trained["total_time"] > 0
    assert 0 < trained["loss"] < 2
    assert trained["distance_between_particles"] > 0
    assert trained["training_list"] == dict.fromkeys(sorted(set(PHANTOMS) - set(UNLABELLED)), 1)
    assert trained["validation_list"] == []
    assert server.slicer().train_status()["status"] == "DONE"
    assert list((server.studies / ".svgd" / "tensorboard").rglob("events.out.tfevents.*"))


def test_ohif_gets_the_bytes_of_an_nrrd_on_the_images_grid(server: Server, trained: dict[str, Any]) -> None:
    answer = server.ohif_infer(UNLABELLED[0])
    assert answer.status_code == 200
    assert answer.content.startswith(b"NRRD")
    file = server.folder / "ohif.nrrd"
    file.write_bytes(answer.content)
    # ITK reads both files by code of its own: it says whether a viewer lays the one over the other.
    result, image = itk.ReadImage(str(file)), itk.ReadImage(str(server.studies / f"{UNLABELLED[0]}.nii.gz"))
    assert result.GetPixelID() == itk.sitkUInt8
    assert result.GetSize() == image.GetSize()
    np.testing.assert_allclose(result.GetOrigin(), image.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(result.GetSpacing(), image.GetSpacing(), atol=1e-5)
    np.testing.assert_allclose(result.GetDirection(), image.GetDirection(), atol=1e-6)
    nifti = server.infer(UNLABELLED[0])[0]
    np.testing.assert_array_equal(itk.GetArrayFromImage(result).transpose(), np.asarray(nifti.dataobj))


def test_the_next_images_come_from_the_queue_with_their_reasons(server: Server, trained: dict[str, Any]) -> None:
    server.wait_for(lambda: not server.leases(), "the end of all leases")
    step = server.query("SELECT version, annotated FROM acquisitions")
    assert len(step) == 1 and step[0][0] == 1
    queue = server.query("SELECT image FROM images WHERE queue_position IS NOT NULL ORDER BY queue_position")
    first, second = server.next_sample("cat"), server.next_sample("dan")
    assert [first["id"], second["id"]] == [row[0] for row in queue]
    for answer in (first, second):
        assert answer["from"] == "queue"
        assert answer["model_version"] == 1
        assert answer["rank"] == server.ranking().index(answer["id"]) + 1
        assert -1 <= answer["score"] <= 1
        assert 0 < answer["entropy"] < np.log(3)
        assert answer["mutual_information"] > 0
        assert "entropy_mi" in answer["why"]
    after = server.next_sample("eve")
    assert after["from"] == "ranking", "two images were asked for; the ranking goes on behind them"
    assert after["id"] not in {first["id"], second["id"]}


# The study goes on to its end


def test_an_annotator_gets_every_image_once_then_nothing(server: Server, all_labelled: list[dict[str, Any]]) -> None:
    assert sorted(answer["id"] for answer in all_labelled) == UNLABELLED
    assert server.request("POST", "/activelearning/svgd", json={"client_id": "fay"}).json() == {}
    assert server.slicer().info()["datastore"]["completed"] == 12
    for phantom in UNLABELLED:
        stored = server.studies / "labels" / "final" / f"{phantom}.nii.gz"
        np.testing.assert_array_equal(voxels(stored), voxels(reference(phantom)))


def test_an_image_acquired_twice_is_trained_on_twice_and_never_validated_on(
    server: Server, all_labelled: list[dict[str, Any]]
) -> None:
    task = load_task("sample")
    # As the OHIF panel sends it: parameters under the trainer's name, choices as the lists it was offered.
    offered = server.slicer().info()["trainers"]["svgd"]["config"]
    request = {**offered, "steps": 1, "tracking": ["mlflow", "none"]}
    assert isinstance(offered["device"], list)
    assert server.request("POST", "/train/", json={"svgd": request}).status_code == 200
    server.wait_training()
    second = server.train_stats()
    assert second["status"] == "done", server.log_tail()
    assert second["version"] == 2
    assert len(second["validation_list"]) == 2, "of twelve labelled images the fifth and the tenth"
    assert set(second["training_list"].values()) == {1}
    assert len(second["validation_dice"]) == 2
    assert (server.studies / ".svgd" / "mlflow.db").stat().st_size > 0

    repeated = server.query("SELECT image FROM images WHERE frequency = 2 ORDER BY image")
    assert len(repeated) == task.queries, "everything is labelled, so every pick is a repetition"
    third = server.train(steps=1, pretrained=False, seed=7)
    twice = [image for image, frequency in third["training_list"].items() if frequency == 2]
    assert twice == [row[0] for row in repeated]
    assert third["validation_list"] == second["validation_list"]
    assert not set(third["validation_list"]) & set(third["training_list"])
    assert not set(third["validation_list"]) & set(server.ranking())

    # One step of Adam moves a weight by the learning rate at most: so the start can be told from the end.
    cpu = torch.device("cpu")
    versions = {v: checkpoint.load(server.committee_file(v), task, device=cpu).committee.matrix() for v in (1, 2, 3)}
    furthest = task.learning_rate * 1.01
    assert (versions[2] - versions[1]).abs().max() <= furthest, "a warm start goes on from the last committee"
    fresh = checkpoint.new_committee(task, seed=7).matrix()
    assert (versions[3] - fresh).abs().max() <= furthest, "without pretrained it starts from random weights"
    assert (versions[3] - versions[2]).abs().max() > furthest


def test_a_stopped_training_leaves_the_last_good_committee(server: Server, all_labelled: list[dict[str, Any]]) -> None:
    before = server.infer(UNLABELLED[0])[1]["model_version"]
    server.slicer().train_start("svgd", {"steps": 100_000, "pretrained": False})
    assert server.wait_training_step()["version"] == before + 1
    assert server.slicer().train_status(check_if_running=True)
    assert server.slicer().train_stop()["status"] == "STOPPED"
    server.wait_training()
    assert server.infer(UNLABELLED[0])[1]["model_version"] == before
    assert server.ranking()
    assert len(server.label_bytes()) == 12


def test_only_images_of_the_study_are_read(server: Server, trained: dict[str, Any]) -> None:
    assert server.ohif_infer("/etc/hostname").status_code == 404
    assert server.ohif_infer(str(SAMPLE / "phantom_01.nii.gz")).status_code == 404
