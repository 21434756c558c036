"""The next image out of 10,000, against MONAI Label's own random strategy on its own datastore.

Both run as real servers, side by side, and are asked in turn over HTTP. Besides: the same with fewer images, ``GET
/info/`` of both, and how long a start takes with all images known, against ten.
"""

import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import requests
from tests.e2e.server import Server

from benchmarks._studies import make_images, score_images, stock_app
from benchmarks.common import Measurement, paired
from svgd_label.tasks import load_task

TARGET = 0.1
LABELLED = 20
CONF = {"task": "hippocampus", "initial": "none"}


def run(*, quick: bool) -> Measurement:
    """10,000 images; quickly, 1,000."""
    images, few = (1000, 100) if quick else (10000, 1000)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        ours, fewer, ten = (_ours(folder / f"ours-{number}", number) for number in (images, few, 10))
        stock = Server(folder / "stock", {}, app=stock_app(folder / "app"))
        stock.studies.rmdir()
        make_images(stock.studies, images)
        servers = (ours, fewer, ten, stock)
        try:
            starts = None if quick else paired(lambda: _start(ours), lambda: _start(ten), pairs=3)
            ten.kill()
            _start(ours, fewer, stock)
            time.sleep(2)  # the work in the background that follows a start
            next_sample = paired(_asking(ours, "svgd"), _asking(stock, "random"), pairs=20 if quick else 50)
            flat = paired(_asking(ours, "svgd"), _asking(fewer, "svgd"), pairs=50)
            info = paired(_info(ours), _info(stock), pairs=50)
        finally:
            for server in servers:
                server.kill()
    details = {
        "images": images,
        f"ms_with_{few}_images": round(flat[2] * 1000, 2),
        f"ratio_to_{few}_images": round(flat[0], 3),
        "info_ms": round(info[1] * 1000, 2),
        "info_ms_stock": round(info[2] * 1000, 2),
        "info_ratio": round(info[0], 3),
    }
    if starts is not None:
        details |= {
            "start_s": round(starts[1], 2),
            "start_s_with_10_images": round(starts[2], 2),
            "start_ratio": round(starts[0], 3),
        }
    ratio, mine, theirs = next_sample
    return Measurement("next_sample", ratio, TARGET, mine * 1000, theirs * 1000, "ms", details)


def _ours(folder: Path, number: int) -> Server:
    server = Server(folder, CONF)
    server.studies.rmdir()
    images = make_images(server.studies, number)
    score_images(server.studies, load_task(CONF["task"]), images, min(LABELLED, number // 2))
    return server


def _start(*servers: Server) -> None:
    """From nothing to the first answer, all at once."""
    for server in servers:
        server.kill()
        server.launch()
    for server in servers:
        while not _answers(server):
            time.sleep(0.02)


def _answers(server: Server) -> bool:
    assert server.process is not None and server.process.poll() is None, server.log_tail()
    try:
        return requests.get(f"{server.address}/info/", timeout=60).ok
    except requests.ConnectionError:
        return False


def _asking(server: Server, strategy: str) -> Any:
    """A request for the next image, each by another client, as a client who comes back at once gets the same image."""
    session, number = requests.Session(), itertools.count()

    def ask() -> None:
        client = f"{id(session)}-{next(number)}"
        answer = session.post(f"{server.address}/activelearning/{strategy}", json={"client_id": client}, timeout=60)
        assert answer.json()["id"]

    return ask


def _info(server: Server) -> Any:
    session = requests.Session()

    def ask() -> None:
        assert session.get(f"{server.address}/info/", timeout=60).ok

    return ask
