"""``make soak``: a hundred kills, then eight annotators for twenty minutes; figures go to ``results/soak/``.

Each part is written as soon as it is over; with ``--kills 0`` or ``--minutes 0`` only the other one is run.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # started as a file, Python looks for modules beside it only

import matplotlib  # noqa: E402
import numpy as np  # noqa: E402
from tests.durability import kills  # noqa: E402
from tests.durability.annotators import Annotator, Record, Trainer, Watcher  # noqa: E402
from tests.durability.crowd import Ledger  # noqa: E402
from tests.durability.study import make_study  # noqa: E402
from tests.e2e.server import Server  # noqa: E402

from svgd_label import hardware  # noqa: E402

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

ANNOTATORS = 8
IMAGES_A_MINUTE = 100  # more than they can label, so that something is left at the end


def main() -> None:
    """Both parts; ends with 1 where anything was lost or went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "soak")
    given = parser.parse_args()
    given.results.mkdir(parents=True, exist_ok=True)
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        if given.kills:
            began = time.monotonic()
            killed = kills.run(Path(temporary) / "kills", given.kills, seed=0)
            minutes = round((time.monotonic() - began) / 60, 1)
            write(given.results / "kills.json", f"--kills {given.kills}", {**vars(killed), "minutes": minutes})
            failed |= bool(killed.problems)
        if given.minutes:
            record = annotate(Path(temporary) / "crowd", given.minutes)
            found = summary(record, given.minutes)
            write(given.results / "annotators.json", f"--minutes {given.minutes:g}", found)
            draw(record, given.results / "annotators.png")
            failed |= bool(found["errors"] or found["given_twice"] or found["lost"])
    sys.exit(failed)


def write(path: Path, arguments: str, found: dict[str, Any]) -> None:
    """One part's figures, with the hardware and the command that made them."""
    command = f"python tests/durability/soak.py {arguments}"
    text = json.dumps({"command": command, "hardware": hardware.describe(), **found}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")
    print(text)


def annotate(folder: Path, minutes: float) -> Record:
    """The annotators at work, with trainings one after the other."""
    make_study(folder, int(IMAGES_A_MINUTE * minutes) + 2 * ANNOTATORS)
    server = Server(folder, {"task": str(folder / "tiny.yaml")})
    try:
        server.start()
        record = Record(Ledger(server.studies))
        end = time.monotonic() + 60 * minutes
        workers = [Annotator(server, record, end, number) for number in range(ANNOTATORS)]
        others = [Trainer(server, record, end, "trainer"), Watcher(server, record, end, "watcher")]
        for worker in (*workers, *others):
            worker.start()
        for worker in (*workers, *others):
            worker.join()
        record.ledger.check()
        log = server.log()
        if "Traceback" in log:
            record.errors.append("the log holds a traceback: " + log[log.index("Traceback") :][:3000])
    finally:
        server.kill()
    return record


def summary(record: Record, minutes: float) -> dict[str, Any]:
    """The figures."""
    memory = [megabytes for _, megabytes in record.memory]
    return {
        "annotators": ANNOTATORS,
        "minutes": minutes,
        "images": int(IMAGES_A_MINUTE * minutes) + 2 * ANNOTATORS,
        **dict(record.counts),
        "lost": record.ledger.problems,
        "given_twice": record.given_twice,
        "errors": record.errors[:20],
        "latency_ms": {what: _milliseconds(values) for what, values in sorted(record.latencies.items())},
        "server_memory_mb": {"first": round(memory[0]), "last": round(memory[-1]), "max": round(max(memory))},
    }


def _milliseconds(values: list[tuple[float, float]]) -> dict[str, float]:
    seconds = np.array([seconds for _, seconds in values]) * 1000
    figures = {"median": np.median(seconds), "p99": np.percentile(seconds, 99), "max": seconds.max()}
    return {"requests": len(values), **{name: round(float(value), 1) for name, value in figures.items()}}


def draw(record: Record, path: Path) -> None:
    """Latencies and the server's memory over time."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 6), sharex=True, layout="constrained")
    for what in ("next sample", "save"):
        at, seconds = np.array(record.latencies[what]).reshape(-1, 2).T
        p99 = _milliseconds(record.latencies[what])["p99"]
        above.plot(at / 60, seconds * 1000, ".", markersize=3, alpha=0.5, label=f"{what}, p99 {p99:.0f} ms")
    above.axhline(200, color="grey", linewidth=0.8, linestyle="--")
    above.set(ylabel="latency (ms)", yscale="log", title=f"{ANNOTATORS} annotators, training and scoring going on")
    above.legend(loc="lower right")
    at, megabytes = np.array(record.memory).T
    below.plot(at / 60, megabytes)
    below.set(xlabel="minutes", ylabel="server's memory (MB)", ylim=(0, 1.1 * max(megabytes)))
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
