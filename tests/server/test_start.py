"""Starting the server: what is refused before anything heavy happens, and what the user is told."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import requests

from svgd_label.errors import UserError
from svgd_label.server import start

REPOSITORY = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder laid out like the checkout, with a blank in its name, so that no test writes into the real one."""
    root = tmp_path / "check out"
    (root / "apps" / "svgd").mkdir(parents=True)
    (root / "sample-data").symlink_to(REPOSITORY / "sample-data")
    monkeypatch.setattr(start, "ROOT", root)
    monkeypatch.delenv(start.CORS, raising=False)
    return root


def prepare(
    studies: str | None,
    task: str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    conf: Mapping[str, str] | None = None,
) -> start.Start:
    return start.prepare(studies, task, host=host, port=port or free_port(), conf=conf or {})


def after(arguments: list[str], option: str) -> str:
    return arguments[arguments.index(option) + 1]


def test_a_taken_port_is_named_with_the_way_out(checkout: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(start.StartError, match=rf"port {port} is taken .* PORT="):
            prepare(str(tmp_path), port=port)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_number_that_is_no_port_is_refused(checkout: Path, tmp_path: Path, port: int) -> None:
    with pytest.raises(start.StartError, match=f"{port} is no port"):
        prepare(str(tmp_path), port=port)


def test_an_address_of_another_machine_is_refused(checkout: Path, tmp_path: Path) -> None:
    with pytest.raises(start.StartError, match="HOST="):
        prepare(str(tmp_path), host="192.0.2.1")  # TEST-NET-1, nobody's
    with pytest.raises(start.StartError, match="no address of this machine"):
        prepare(str(tmp_path), host="no such host")


def test_a_missing_folder_is_refused_and_not_made(checkout: Path, tmp_path: Path) -> None:
    with pytest.raises(start.StartError, match="there is no such folder"):
        prepare(str(tmp_path / "missing"))
    assert not (tmp_path / "missing").exists()


def test_a_file_is_no_folder(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "image.nii.gz").touch()
    with pytest.raises(start.StartError, match=r"image\.nii\.gz: not a folder"):
        prepare(str(tmp_path / "image.nii.gz"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(start.StartError, match="cannot be written to"):
        prepare(str(tmp_path / "locked"))


def test_too_little_room_is_refused_with_what_there_is(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "NEEDED_MB", 10**9)
    with pytest.raises(start.StartError, match=r"only \d+ MB are free"):
        prepare(str(tmp_path))


def test_another_python_is_refused(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "PYTHON", (2, 7))
    with pytest.raises(start.StartError, match=r"needs Python 2\.7"):
        prepare(str(tmp_path))


@pytest.mark.parametrize(
    ("task", "conf", "words"),
    [
        ("hipocampus", {}, "hipocampus"),
        ("missing.yaml", {}, "missing.yaml"),
        (None, {"leese": "30"}, "leese"),
        (None, {"lease": "long"}, "lease"),
    ],
)
def test_a_wrong_task_or_setting_stops_the_start(
    checkout: Path, tmp_path: Path, task: str | None, conf: dict[str, str], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        prepare(str(tmp_path), task, conf=conf)


def test_a_folder_with_blanks_stays_one_argument(checkout: Path, tmp_path: Path) -> None:
    studies = tmp_path / "my studies"
    studies.mkdir()
    ready = prepare(str(studies), conf={"lease": "30"})
    assert after(ready.arguments, "--studies") == str(studies)
    assert after(ready.arguments, "--app") == str(checkout / "apps" / "svgd")
    conf = [ready.arguments[i + 1 : i + 3] for i, word in enumerate(ready.arguments) if word == "--conf"]
    assert conf == [["lease", "30"], ["task", "hippocampus"]]


def test_the_sample_study_is_copied_once_with_its_labels(checkout: Path) -> None:
    ready = prepare(None)
    study = checkout / "studies" / "sample"
    assert after(ready.arguments, "--studies") == str(study)
    assert ready.arguments[-2:] == ["task", "sample"]
    assert len(list(study.glob("*.nii.gz"))) == 12
    assert len(list((study / "labels" / "final").iterdir())) == 4
    assert len(list((study / "reference").iterdir())) == 8

    (study / "labels" / "final" / "phantom_02.nii.gz").write_bytes(b"an hour of work")
    prepare(None)
    assert (study / "labels" / "final" / "phantom_02.nii.gz").read_bytes() == b"an hour of work"
    assert [entry.name for entry in (checkout / "studies").iterdir()] == ["sample"], "no half copy is left"


def test_a_task_of_ones_own_may_go_with_the_sample_study(checkout: Path) -> None:
    assert prepare(None, "hippocampus").arguments[-2:] == ["task", "hippocampus"]


def test_a_folder_is_served(checkout: Path, tmp_path: Path) -> None:
    port = free_port()
    folder = prepare(str(tmp_path), port=port)
    assert "/ohif/" not in folder.welcome
    assert f"server http://127.0.0.1:{port}, then 'Next Sample'" in folder.welcome
    assert f"curl -X POST http://127.0.0.1:{port}/activelearning/svgd" in folder.welcome


def test_an_open_address_is_warned_of(checkout: Path, tmp_path: Path) -> None:
    assert "everybody" in prepare(str(tmp_path), host="0.0.0.0").welcome
    assert "everybody" not in prepare(str(tmp_path)).welcome


def test_other_web_pages_are_kept_out_until_the_setting_lets_them_in(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    assert prepare(str(tmp_path), port=port).origins == [f"http://127.0.0.1:{port}", f"http://localhost:{port}"]
    monkeypatch.setenv(start.CORS, '["https://viewer.example/"]')
    assert prepare(str(tmp_path)).origins == ["https://viewer.example"], "a browser sends no slash at the end"
    monkeypatch.setenv(start.CORS, '["*"]')
    assert prepare(str(tmp_path)).origins == [], "which is MONAI Label's word for everybody"


@pytest.mark.parametrize("setting", ["*", "[]", "{}", "[1]", '["viewer.example"]', '["http://"]', '["http://[x"]'])
def test_origins_of_another_form_are_refused(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setenv(start.CORS, setting)
    with pytest.raises(start.StartError, match=start.CORS):
        prepare(str(tmp_path))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """The real command on an empty folder with a blank in its name."""
    studies, port = tmp_path / "my studies", free_port()
    studies.mkdir()
    command = [sys.executable, "main.py", "serve", "--studies", str(studies), "--task", "sample", "--port", str(port)]
    environment = {**os.environ, start.CORS: json.dumps(["http://viewer.example"]), "OMP_NUM_THREADS": "1"}
    output = tmp_path / "output.txt"
    with output.open("w") as stream:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=stream, stderr=subprocess.STDOUT, text=True
        )
    try:
        yield process, f"http://127.0.0.1:{port}", output
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_the_server_answers_keeps_others_out_and_ends_with_ctrl_c(
    server: tuple[subprocess.Popen[str], str, Path],
) -> None:
    process, address, output = server
    for _ in range(240):
        assert process.poll() is None, output.read_text()
        try:
            info = requests.get(f"{address}/info/", timeout=60)
            break
        except requests.ConnectionError:
            time.sleep(1)
    assert info.status_code == 200, output.read_text()
    for origin, allowed in {"http://viewer.example": "http://viewer.example", "http://evil.example": None}.items():
        answer = requests.get(f"{address}/info/", headers={"Origin": origin}, timeout=60)
        assert answer.headers.get("access-control-allow-origin") == allowed
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0, output.read_text()
    assert "Traceback" not in output.read_text()
    assert "What to open" in output.read_text()
