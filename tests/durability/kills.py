"""A server that is killed again and again while three clients save labels, and what must hold after each kill."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tests.durability import ranking
from tests.durability.crowd import Ledger, Saver
from tests.durability.study import make_study
from tests.e2e.server import Server

CLIENTS = 3
MOMENTS = ("training", "start", "scoring", "saving", "anywhere")


@dataclass
class Report:
    """What a run of kills came to; ``problems`` is empty where nothing was lost."""

    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MOMENTS, 0))
    acknowledged: int = 0
    versions: int = 0
    trainings: int = 0
    problems: list[str] = field(default_factory=list)


def run(folder: Path, kills: int, seed: int) -> Report:
    """Kills a server ``kills`` times at random moments; stops at the first problem."""
    rng = np.random.default_rng(seed)
    images = make_study(folder, 10 * CLIENTS)
    server = Server(folder, {"task": str(folder / "tiny.yaml")})
    ledger, report = Ledger(server.studies), Report()
    try:
        for number in range(kills):
            moment = MOMENTS[number % len(MOMENTS)]
            if moment == "start":
                server.launch()
                time.sleep(rng.uniform(0.5, 6))
                server.kill()
            else:
                _live(server, ledger, images, moment, rng, report)
            report.kills[moment] += 1
            ledger.check()
            if ledger.problems:
                break
        server.start()
        _check_answers(server, ledger)
        server.wait_training()
        server.wait_scoring()
        _check_ranking(server, ledger)
        _check_rows(server, ledger)
        report.trainings = server.query("SELECT COUNT(*) FROM models")[0][0]
        if "Traceback" in server.log():
            ledger.problems.append("the log holds a traceback:\n" + server.log_tail())
    finally:
        server.kill()
    report.versions, report.problems = len(ledger.versions), ledger.problems
    return report


def _live(
    server: Server, ledger: Ledger, images: list[str], moment: str, rng: np.random.Generator, report: Report
) -> None:
    """One life of the server: what survived the last kill is looked at, then clients save until the next."""
    server.start()
    _check_answers(server, ledger)
    _check_ranking(server, ledger)
    savers = [
        Saver(server, ledger, f"client {c}", images[c::CLIENTS], int(rng.integers(2**31))) for c in range(CLIENTS)
    ]
    for saver in savers:
        saver.start()
    try:
        _wait_for(server, moment, rng)
    finally:
        server.kill()
        for saver in savers:
            saver.join()
            report.acknowledged += saver.saved


def _wait_for(server: Server, moment: str, rng: np.random.Generator) -> None:
    """Until a moment has come, and a random while longer."""
    if moment == "saving":
        time.sleep(rng.uniform(0.1, 2))
        return
    time.sleep(1)  # there must be labels to train on
    before = server.train_stats().get("started")  # not its version, which the one killed last had as well
    assert server.request("POST", "/train/svgd", json={}).ok, server.log_tail()
    if moment == "anywhere":
        time.sleep(rng.uniform(0, 12))
        return

    def has_come() -> bool:
        stats = server.train_stats()
        assert stats.get("status") != "failed", f"{stats}\n{server.log_tail()}"
        if stats.get("started") == before:
            return False
        return stats["status"] != "training" or (moment == "training" and stats.get("step", 0) > 0)

    server.wait_for(has_come, f"the {moment}", seconds=120)
    time.sleep(rng.uniform(0, 0.4))


def _check_answers(server: Server, ledger: Ledger) -> None:
    """The server gives out, and lists, every label that it had acknowledged."""
    objects = server.request("GET", "/datastore/", params={"output": "all"}).json()["objects"]
    for image, known in ledger.current.items():
        if ("final" in objects[image]["labels"]) != (known is not None):
            ledger.problems.append(f"{image}: its label is {'not ' if known else ''}listed")
        answer = server.request("GET", "/datastore/label", params={"label": image, "tag": "final"})
        there = ledger.label_file(image).read_bytes() if known else None
        if (answer.content if answer.ok else None) != there:
            ledger.problems.append(f"{image}: the server gives out another label ({answer.status_code})")


def _check_ranking(server: Server, ledger: Ledger) -> None:
    """The ranking is that of the stored scores and the labels, or is made so by the server itself before long."""
    if server.query("SELECT 1 FROM meta WHERE key = 'ranking_version'"):
        try:
            server.wait_for(lambda: ranking.is_right(server), "a right ranking", seconds=30)
        except AssertionError as error:
            ledger.problems.append(str(error))


def _check_rows(server: Server, ledger: Ledger) -> None:
    """Every acknowledged version is in the index, with who saved it."""
    rows = {
        (image, file): client for image, file, client in server.query("SELECT image, file, client FROM label_versions")
    }
    for version, (_, client) in ledger.versions.items():
        if rows.get((version.parent.name, version.name)) != client:
            ledger.problems.append(f"{version.parent.name}: {version.name} is not in the index as saved by {client}")
