"""Starts that are refused with a sentence, and the app loaded from the top of the checkout."""

from pathlib import Path

import pytest
from tests.e2e.server import REPOSITORY, Server, copy_sample

pytestmark = pytest.mark.slow

OWN_ORGAN = "name: own\nlabels: [organ]\nwindow: [32, 32, 32]\nparticles: many\n"


@pytest.mark.parametrize(
    ("conf", "named"),
    [
        ({"task": "{folder}/own.yaml"}, ["own.yaml", "particles", "'many'", "integer"]),
        ({"task": "kidney"}, ["'kidney'", "hippocampus", "sample", ".yaml"]),
        ({"taks": "sample"}, ["--conf taks", "there is no such setting", "task"]),
    ],
)
def test_a_wrong_task_or_setting_ends_the_start_with_a_sentence(
    tmp_path: Path, conf: dict[str, str], named: list[str]
) -> None:
    (tmp_path / "own.yaml").write_text(OWN_ORGAN, encoding="utf-8")
    server = Server(tmp_path, {key: value.format(folder=tmp_path) for key, value in conf.items()})
    try:
        assert server.launch().wait(timeout=300) != 0
    finally:
        server.kill()
    sentences = [line for line in server.log().splitlines() if "cannot start: " in line]
    assert len(sentences) == 1, server.log()
    for word in named:
        assert word in sentences[0]
    assert "Traceback" not in server.log()


def test_the_app_is_found_at_the_top_of_the_checkout(tmp_path: Path) -> None:
    # MONAI Label makes folders where the app is, so this is a checkout of links to the real one.
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "main.py").symlink_to(REPOSITORY / "main.py")
    server = Server(tmp_path, {"task": "sample"}, app=checkout)
    copy_sample(server.studies)
    try:
        info = server.start().slicer().info()
        assert info["labels"] == ["anterior", "posterior"]
        assert list(info["trainers"]) == ["svgd"]
        assert server.log().count("web pages of every origin may call this server") == 1
        # The background processes load the app anew.
        assert server.train(steps=1)["status"] == "done"
        assert server.infer("phantom_02")[1]["model_version"] == 1
    finally:
        server.kill()
