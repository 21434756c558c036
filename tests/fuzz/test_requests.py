"""Any request may be wrong: the client is told so, nothing outside the study is read, and the server goes on."""

import io
import json
import tarfile
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from tests.e2e.server import Server, copy_sample
from tests.fuzz.mutations import nifti

pytestmark = pytest.mark.slow

SECRET = "what-stands-beside-the-study"
TRICKS = [
    "", ".", "..", "../..", "../secret.nii", "..%2f..%2fetc%2fpasswd", "%2e%2e/secret.nii", "..\\secret.nii",
    "/etc/passwd", "//etc//passwd", "C:\\windows\\win.ini", "file:///etc/passwd", "http://127.0.0.1:1/x", "a\0b", "\0",
    "~root",
    "*", "?", " ", ".svgd", ".svgd/state.sqlite", "labels", "labels/final", "a" * 5000, "../" * 500, "💙",
    "'; DROP TABLE images; --",
    "%00", "%", "\r\nX: y", "null", "phantom_02/../../secret.nii", "/dev/zero", "/dev/stdin", "-rf", "{}", "${HOME}",
]  # fmt: skip
BODIES = [
    b"", b"null", b"NaN", b"[NaN]", b'{"a": NaN}', b"1e999", b"[]", b"[1]", b'"text"', b"7", b"true", b"{", b"{]",
    b"\xff\xfe",
    b'{"client_id": "\\ud800"}', b'{"client_id": {}}', b'{"client_id": []}', b'{"client_id": ' + b"9" * 5000 + b"}",
    b'{"svgd": 5}', b'{"svgd": [1]}', b'{"steps": "many"}', b'{"steps": NaN}', b'{"steps": -1}', b'{"model": "other"}',
    b'{"method": "other"}', b'{"images": ["/etc/passwd"]}', b'{"label_tag": "../x"}', b'{"label_tag": {}}',
    b"[" * 100_000, b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    b'{"client_id": "' + b"x" * 10_000_000 + b'"}', b'{"reason": 5}', b'{"reason": {"a": 1}}', b'{"reason": "\\ud800"}',
]  # fmt: skip
TEXTS = [
    "", "null", "NaN", '{"a": NaN}', "[]", "7", '"x"', "{", "\0", '{"a": "\ud800"}'.encode("utf-8", "surrogatepass"),
    '{"a": "\\ud800"}', "[" * 100_000, '{"image": "/etc/passwd"}', '{"model": "x"}', '{"label_info": 5}',
    '{"label_info": [[[]]]}', '{"label_info": [{"name": 5, "idx": "x"}]}', '{"result_extension": "/../x"}',
    '{"result_extension": 5}', '{"session": 5, "session_id": "../.."}', '{"strategy": 5}', '{"model_version": 1e30}',
    '{"model_version": ' + "9" * 300 + "}", '{"a": "' + "x" * 3_000_000 + '"}',
]  # fmt: skip
NAMES = [
    "a.nii.gz",
    "",
    "..",
    "../../x.nii",
    "a.nii\0.gz",
    "a" * 300 + ".nii",
    "a." + "b" * 300,
    "meta.info",
    "x/y",
    "x\\y",
    "💙.nii",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the sample study; beside the studies folder lies what no client may see."""
    folder = tmp_path_factory.mktemp("fuzz")
    server = Server(folder, {"task": "sample", "initial": "none"})
    copy_sample(server.studies)
    (folder / "secret.nii").write_bytes(nifti()[:352] + SECRET.encode())
    (folder / "secret.txt").write_text(SECRET)
    (server.studies / "linked.nii").symlink_to(folder / "secret.nii")
    (folder / "temporary").mkdir()
    half_made = folder / "sessions" / str(uuid.uuid4())
    half_made.mkdir(parents=True)  # as a kill in the middle of an upload leaves it
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MONAI_LABEL_SESSION_PATH", str(folder / "sessions"))
        environment.setenv("TMPDIR", str(folder / "temporary"))
        try:
            yield server.start()
        finally:
            server.kill()


def ask(server: Server, method: str, path: str, **arguments: Any) -> requests.Response:
    """A request, in time, whose answer is neither the server's own failure nor somebody else's file."""
    answer = requests.request(method, f"{server.address}{path}", timeout=30, **arguments)
    shown = f"{method} {path[:100]} {str(arguments)[:200]}: {answer.status_code} {answer.text[:300]}"
    assert answer.status_code < 500 or answer.status_code == 507, f"{shown}\n{server.log_tail()}"
    assert SECRET not in answer.text and "root:x:" not in answer.text and "Traceback" not in answer.text, shown
    return answer


@pytest.fixture(autouse=True)
def still_there(server: Server) -> Iterator[None]:
    """After each test the server answers, gives an image, and tells all that it knows."""
    yield
    assert requests.get(f"{server.address}/info/", timeout=30).ok
    assert requests.get(f"{server.address}/datastore/?output=all", timeout=30).ok
    assert requests.post(f"{server.address}/activelearning/svgd", json={"client_id": "watcher"}, timeout=30).ok


def test_ids_that_are_paths(server: Server) -> None:
    for trick in TRICKS:
        query = dict.fromkeys(("image", "id", "label"), trick) | {"tag": "final"}
        for place in ("/datastore/image", "/datastore/label", "/datastore/image/info", "/datastore/label/info"):
            answer = ask(server, "GET", place, params=query)
            assert answer.status_code >= 400 or answer.json() == {}, (place, trick)
        for place in ("/datastore/image", "/datastore/label"):
            assert not ask(server, "HEAD", place, params=query).ok, (place, trick)
            assert not ask(server, "DELETE", place, params=query).ok, (place, trick)
        assert not ask(server, "PUT", "/datastore/image/info", params=query, data={"info": "{}"}).ok, trick
        assert not ask(server, "PUT", "/datastore/label/info", params=query, data={"info": "{}"}).ok, trick
        assert not ask(server, "PUT", "/datastore/label", params=query, files={"label": ("a.nii", nifti())}).ok, trick
        assert not ask(server, "POST", "/infer/svgd", params={"image": trick}).ok, trick
        assert not ask(server, "POST", "/infer/svgd", params={"session_id": trick}).ok, trick
        assert not ask(server, "POST", "/svgd/flag", params={"image": trick}, json={"reason": "x"}).ok, trick
    assert (server.folder / "secret.nii").exists()


def test_tags_that_are_paths(server: Server) -> None:
    for trick in TRICKS[1:]:
        query = {"image": "phantom_02", "label": "phantom_02", "id": "phantom_02", "tag": trick}
        ask(server, "GET", "/datastore/label", params=query)
        ask(server, "DELETE", "/datastore/label", params=query)
        ask(server, "PUT", "/datastore/label", params=query, files={"label": ("a.nii.gz", nifti())})
    assert sorted(entry.name for entry in (server.studies / "labels").iterdir()) == ["final", "original"]


def test_names_in_the_address(server: Server) -> None:
    for trick in [*TRICKS[3:], "svgd2"]:
        name = requests.utils.quote(trick, safe="")
        for method, place in (
            ("POST", "/infer/"), ("POST", "/activelearning/"), ("POST", "/train/"), ("POST", "/scoring/"),
            ("GET", "/model/"), ("POST", "/batch/infer/"), ("GET", "/model/info/"), ("DELETE", "/model/"),
            ("GET", "/session/"), ("DELETE", "/session/"), ("POST", "/infer/wsi/"), ("POST", "/infer/wsi_v2/"),
        ):  # fmt: skip
            assert not ask(server, method, place + name).ok, (method, place, trick)
        for place in ("/ohif/", "/proxy/dicom/", "/proxy/dicom/wado/", "/static/"):
            ask(server, "GET", place + name)
            ask(server, "GET", place + trick.replace("\0", ""))
        ask(server, "PUT", "/model/" + name, files={"file": ("a.pt", b"x")})


def test_a_link_out_of_the_study_is_no_image(server: Server) -> None:
    assert "linked" not in ask(server, "GET", "/datastore/?output=all").json()["objects"]
    assert ask(server, "GET", "/datastore/image", params={"image": "linked"}).status_code == 404
    for path in (server.studies / "linked.nii", server.folder / "secret.nii", Path("/etc/passwd")):
        assert ask(server, "POST", "/infer/svgd", params={"image": str(path)}).status_code == 404


def test_bodies_that_are_no_parameters(server: Server) -> None:
    for body in BODIES:
        for path in (
            "/activelearning/svgd", "/activelearning/random", "/svgd/flag?image=phantom_02",
            "/train/svgd?run_sync=true", "/train/?run_sync=true", "/train/other", "/scoring/other",
            "/batch/infer/other",
            "/batch/infer/svgd?images=none", "/infer/svgd",
        ):  # fmt: skip
            ask(server, "POST", path, data=body, headers={"Content-Type": "application/json"})
    ask(server, "POST", "/svgd/flag", params={"image": "phantom_02"}, json={})
    for path in ("/activelearning/svgd", "/svgd/flag?image=phantom_02", "/train/svgd", "/scoring/entropy_mi"):
        assert ask(server, "POST", path, json={"client_id": "x" * 10_000_000}).status_code == 413, path
    for body in (b"NaN", b"[]", b"7", b"[" * 100_000, b'{"label_tag": "../x"}'):
        for path in ("/scoring/entropy_mi", "/batch/infer/svgd"):
            assert not ask(server, "POST", path, data=body, headers={"Content-Type": "application/json"}).ok, (
                path,
                body[:20],
            )


def test_form_fields_that_are_no_parameters(server: Server) -> None:
    for text in TEXTS:
        ask(server, "POST", "/infer/svgd", params={"image": "phantom_02"}, files={"params": (None, text)})
        ask(server, "PUT", "/datastore/image/info", params={"image": "phantom_02"}, files={"info": (None, text)})
        label = {"label": ("a.nii.gz", nifti()), "params": (None, text)}
        assert not ask(server, "PUT", "/datastore/label", params={"image": "phantom_02"}, files=label).ok
        image = {"file": ("new.nii", b"no"), "params": (None, text)}
        if ask(server, "PUT", "/datastore/", params={"image": "added"}, files=image).ok:
            ask(server, "DELETE", "/datastore/", params={"id": "added"})


def test_names_of_uploads(server: Server) -> None:
    before = {path.name for path in server.folder.iterdir()}
    for name in NAMES:
        for method, path, field in (
            ("PUT", "/datastore/label?image=phantom_02", "label"), ("PUT", "/session/", "files"),
            ("POST", "/infer/svgd?image=phantom_02", "file"), ("PUT", "/model/svgd", "file"),
        ):  # fmt: skip
            ask(server, method, path, files={field: (name, b"no image", "application/octet-stream")})
            ask(server, method, path)
            ask(
                server, method, path, data=b"--x\r\nbroken", headers={"Content-Type": "multipart/form-data; boundary=x"}
            )
        answer = ask(server, "PUT", "/datastore/", files={"file": (name, b"no image")})
        if answer.ok:
            ask(server, "DELETE", "/datastore/", params={"id": answer.json()["image"]})
    assert {path.name for path in server.folder.iterdir()} <= before | {"downloads"}


def test_a_refused_upload_leaves_nothing_behind(server: Server) -> None:
    before = set((server.folder / "temporary").rglob("*"))
    upload = ("a.nii", b"no image")
    assert ask(server, "PUT", "/datastore/label?image=phantom_02", files={"label": upload}).status_code == 400
    assert not ask(server, "PUT", "/datastore/?image=.x", files={"file": upload}).ok
    assert not ask(server, "POST", "/infer/svgd", files={"file": upload}).ok
    assert set((server.folder / "temporary").rglob("*")) <= before


def test_archives_that_lead_out_of_their_folder(server: Server) -> None:
    target = server.folder / "written-by-an-archive"
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        member = tarfile.TarInfo(str(target))
        member.size = 2
        archive.addfile(member, io.BytesIO(b"no"))
    for name in ("a.tar", "a.zip", "a.nii"):
        answer = ask(server, "PUT", "/session/?uncompress=true", files={"files": (name, packed.getvalue())})
        assert answer.status_code == 400
    assert not target.exists()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive_file:
        archive_file.writestr("deep/meta.info", json.dumps({"image": str(server.folder / "secret.nii")}))
    session = ask(server, "PUT", "/session/?uncompress=true", files={"files": ("a.zip", packed.getvalue())}).json()
    inside = Path(session["session_info"]["image"]).relative_to(server.folder / "sessions") / "deep"
    assert ask(server, "POST", "/infer/svgd", params={"session_id": str(inside)}).status_code == 404
    assert ask(server, "GET", f"/session/{session['session_id']}?image=true").status_code == 404  # a folder


def test_methods_numbers_and_logs(server: Server) -> None:
    for method in ("GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"):
        for path in (
            "/info/",
            "/datastore/",
            "/logs/",
            "/reload",
            "/activelearning/svgd",
            "/nowhere",
            "/session/",
            "/",
        ):
            ask(server, method, path)
    for number in ("-1", "0", "1e9", "9" * 30, "x", "nan"):
        ask(server, "GET", "/logs/", params={"lines": number, "refresh": number})
        ask(server, "GET", "/datastore/dataset", params={"limit_cases": number})
        ask(server, "PUT", "/session/", params={"expiry": number}, files={"files": ("a.nii", b"no")})
    for checksum in ("x", "MD4:00", ":", "SHA256:zz", "a" * 9999):
        assert not ask(server, "HEAD", "/datastore/image", params={"image": "phantom_02", "check_sum": checksum}).ok
    assert ask(server, "POST", "/reload").status_code in (404, 405)


def test_what_is_stored_with_an_image_cannot_spoil_later_answers(server: Server) -> None:
    for info in ('{"a": NaN}', '{"a": "\\ud800"}', '{"strategy": 5}'):
        for image in ("phantom_01", "phantom_02"):
            answer = ask(server, "PUT", "/datastore/image/info", params={"image": image}, files={"info": (None, info)})
            assert answer.status_code == 400, info
    for image in [f"phantom_{n:02}" for n in range(1, 13)]:
        ask(
            server,
            "PUT",
            "/datastore/image/info",
            params={"image": image},
            files={"info": (None, '{"id": "x", "path": "/"}')},
        )
    answer = server.next_sample("watcher")
    assert answer["id"].startswith("phantom_") and answer["path"].startswith(str(server.studies))
