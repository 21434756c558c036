"""The proxy asks for the login where MONAI Label's is on, and keeps what viewers search for out of the log."""

import logging
import os
import subprocess
import sys

import pytest

from svgd_label.server.dicom.proxy import _without_query

ASK = """
from fastapi import FastAPI
from fastapi.testclient import TestClient
from svgd_label.server.dicom.address import Address
from svgd_label.server.dicom.proxy import proxy_routes
from svgd_label.server.dicom.web import DicomServer

app = FastAPI()
app.include_router(proxy_routes(DicomServer(Address("http://127.0.0.1:9/dicom-web"))))
with TestClient(app) as client:
    answers = client.get("/proxy/dicom/qido/studies"), client.post("/proxy/dicom/wado/studies", content=b"")
    print(*(answer.status_code for answer in answers))
"""


@pytest.mark.parametrize(("login", "expected"), [("true", "401 401"), ("false", "502 502")])
def test_with_login_nothing_passes_without_a_token(login: str, expected: str) -> None:
    environment = {**os.environ, "MONAI_LABEL_AUTH_ENABLE": login, "MONAI_LABEL_AUTH_REALM_URI": "http://127.0.0.1:9"}
    run = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, timeout=120)
    assert run.stdout.split("\n")[-2:] == [expected, ""], run.stderr


def test_the_access_log_shows_nothing_that_a_viewer_searches_for() -> None:
    def line(path: str) -> str:
        record = logging.LogRecord(
            "uvicorn.access", logging.INFO, "", 0, '%s - "%s %s HTTP/%s" %d', ("1.2.3.4", "GET", path, "1.1", 200), None
        )
        assert _without_query(record)
        return record.getMessage()

    assert line("/proxy/dicom/qido/studies?PatientName=DOE*").endswith('"GET /proxy/dicom/qido/studies HTTP/1.1" 200')
    for page in ("/ohif", "/ohif/"):  # its work list puts the filters into the address
        assert line(f"{page}?patientName=SMITH&mrn=1234").endswith(f'"GET {page} HTTP/1.1" 200')
    assert line("/datastore/?output=all").endswith('"GET /datastore/?output=all HTTP/1.1" 200')
