"""MONAI Label's login on the page: a realm of the test's own signs tokens, a browser logs in with a password."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jwt
import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from tests.durability.study import make_study
from tests.e2e.server import Server
from tests.server.browser import CHROMIUM, MISSING, Browser

pytestmark = pytest.mark.slow

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
ROLES = {"ann": ["monailabel-user"], "root": ["monailabel-user", "monailabel-admin"]}
PASSWORD = "open sesame"


def token(user: str, *, key: Any = KEY, seconds: float = 600) -> str:
    claims = {"preferred_username": user, "realm_access": {"roles": ROLES[user]}, "exp": time.time() + seconds}
    return jwt.encode(claims, key, algorithm="RS256")


class Realm(BaseHTTPRequestHandler):
    """As much of Keycloak as MONAI Label asks for."""

    def do_GET(self) -> None:
        pem = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        lines = pem.decode().strip().split("\n")[1:-1]
        host = self.headers["Host"]
        self._answer(200, {"public_key": "".join(lines), "token_endpoint": f"http://{host}/token"})

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        user = form["username"][0]
        if form["password"] == [PASSWORD] and user in ROLES:
            self._answer(200, {"access_token": token(user), "token_type": "Bearer"})
        else:
            self._answer(401, {"error": "invalid_grant"})

    def _answer(self, status: int, content: dict[str, str]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    realm = ThreadingHTTPServer(("127.0.0.1", 0), Realm)
    threading.Thread(target=realm.serve_forever, daemon=True).start()
    folder = tmp_path_factory.mktemp("login")
    make_study(folder, 3)
    server = Server(
        folder,
        {"task": str(folder / "tiny.yaml")},
        environment={
            "MONAI_LABEL_AUTH_ENABLE": "true",
            "MONAI_LABEL_AUTH_REALM_URI": f"http://127.0.0.1:{realm.server_port}",
        },
    )
    try:
        server.launch()
        server.wait_for(lambda: _is_up(server), "the page")
        yield server
    finally:
        server.kill()
        realm.shutdown()


def _is_up(server: Server) -> bool:
    try:
        return requests.get(f"{server.address}/svgd/", timeout=10).ok
    except requests.ConnectionError:
        return False


def test_only_a_token_of_the_realm_that_has_not_ended_opens_the_data(server: Server) -> None:
    def ask(bearer: str | None, path: str = "/svgd/state", method: str = "GET") -> int:
        headers = {} if bearer is None else {"Authorization": f"Bearer {bearer}"}
        return server.request(method, path, headers=headers).status_code

    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    unsigned = jwt.encode({"preferred_username": "root", "realm_access": {"roles": ROLES["root"]}}, "", "none")
    assert ask(token("ann")) == 200
    for refused in (None, "nonsense", token("root", key=other), token("root", seconds=-60), unsigned):
        assert ask(refused) == 401
    assert ask(token("ann"), "/train/svgd", "POST") == 403, "training is an administrator's"
    assert ask(token("root"), "/train/svgd", "POST") == 409, "there is no label yet"


def test_a_browser_logs_in_and_out(server: Server, tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip(MISSING)

    def log_in(browser: Browser, password: str) -> None:
        browser.wait_for("!document.getElementById('login').hidden")
        browser.run("document.querySelector('#login [name=username]').value = 'ann'")
        browser.run(f"document.querySelector('#login [name=password]').value = {password!r}")
        browser.run("document.querySelector('#login button').click()")

    with Browser(tmp_path / "profile") as browser:
        browser.open(f"{server.address}/svgd/")
        log_in(browser, "wrong")
        browser.wait_for("document.getElementById('notice').textContent.includes('not accepted')")
        assert "image_00000" not in browser.run("document.body.textContent")
        log_in(browser, PASSWORD)
        browser.wait_for("document.querySelectorAll('#images tbody tr').length === 3")
        assert browser.run("document.getElementById('user').textContent") == "ann"
        browser.run("document.getElementById('start').click()")
        browser.wait_for("document.getElementById('notice').textContent.includes('monailabel-admin')")
        browser.run("document.getElementById('logout').click()")
        browser.wait_for("!document.getElementById('login').hidden")
        assert browser.run("sessionStorage.length") == 0
        assert browser.run("document.querySelectorAll('#images tbody tr').length") == 0
