"""A server that an experiment has started is not taken for another one on the same port."""

import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from svgd_label.experiments.server_process import ServerProcess

pytest.importorskip("requests", reason="comes with MONAI Label")


class _Stranger(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_stranger_on_the_port_is_not_ones_own_server(tmp_path: Path) -> None:
    stranger = HTTPServer(("127.0.0.1", 0), _Stranger)
    threading.Thread(target=stranger.serve_forever, daemon=True).start()
    script = "import http.server as s; h = s.HTTPServer(('127.0.0.1', 0), s.SimpleHTTPRequestHandler); "
    script += "print(h.server_port, flush=True); h.serve_forever()"
    own = subprocess.Popen(["sh", "-c", f'python3 -c "{script}"; :'], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        assert own.stdout is not None
        port = int(own.stdout.readline())
        (tmp_path / "info").mkdir()  # which it lists
        assert ServerProcess(own, f"http://127.0.0.1:{port}", tmp_path / "log").answers()  # type: ignore[arg-type]
        at = f"http://127.0.0.1:{stranger.server_port}"
        assert not ServerProcess(own, at, tmp_path / "log").answers()  # type: ignore[arg-type]
    finally:
        subprocess.run(["pkill", "-P", str(own.pid)], check=False)
        own.wait()
        stranger.shutdown()
