"""What servers answer that is not quite DICOM's: taken where its sense is clear, told of where it is not."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

from svgd_label.server.dicom.address import Address
from svgd_label.server.dicom.web import DicomServer, Series, ServerError


class Answers(BaseHTTPRequestHandler):
    """Says what a test has put into ``said``: (Content-Type, content), at the first page of a search only."""

    said: tuple[str, Any] = ("", None)

    def do_GET(self) -> None:
        self._answer([] if "offset=1" in self.path or "offset=2" in self.path else self.said[1])

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(self.said[1])

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", self.said[0])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[DicomServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as answering:
        threading.Thread(target=answering.serve_forever, daemon=True).start()
        yield DicomServer(Address(f"http://127.0.0.1:{answering.server_port}/dicom"))
        answering.shutdown()


def entry(uid: str, **others: Any) -> dict[str, Any]:
    return {
        "0020000D": {"vr": "UI", "Value": ["1.2"]},
        "0020000E": {"vr": "UI", "Value": [uid]},
        "00080060": {"vr": "CS", "Value": ["MR"]},
        **others,
    }


@pytest.mark.parametrize("kind", ["application/dicom+json", "application/dicom+json; charset=utf-8"])
def test_a_refusal_is_heard_whatever_stands_behind_its_content_type(
    kind: str, server: DicomServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = {"00081197": {"vr": "US", "Value": [272]}}
    monkeypatch.setattr(Answers, "said", (kind, {"00081198": {"vr": "SQ", "Value": [reason]}}))
    instance = Dataset()
    instance.SOPClassUID, instance.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    instance.StudyInstanceUID, instance.SeriesInstanceUID = generate_uid(), generate_uid()
    instance.is_little_endian, instance.is_implicit_VR = True, False
    with pytest.raises(ServerError, match="refused with the reason 272"):
        server.store(instance)


def test_a_series_is_hidden_by_no_other_and_by_no_attribute_that_nobody_needs(
    server: DicomServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    too_long = "1." + "2" * 63
    listed = [
        entry("1.2.3", **{"00200011": {"vr": "IS", "Value": ["1.5"]}}),
        entry("1.2.4", **{"00201209": {"vr": "IS", "Value": ["many"]}}),
        entry(too_long),
    ]
    monkeypatch.setattr(Answers, "said", ("application/dicom+json", listed))
    for _ in range(2):
        assert server.series({}) == [Series("1.2", "1.2.3", "MR", None), Series("1.2", "1.2.4", "MR", None)]
    assert caplog.text.count(too_long) == 1
