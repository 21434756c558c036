"""The trainer task ``svgd``: what is saved is trained on, published as a model version, and scored before it ends."""

import json
import logging
import math
import os
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
from fastapi import HTTPException
from ignite.engine import Engine
from monailabel.config import settings
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.train import TrainTask

from svgd_label import acquisition, checkpoint
from svgd_label.active_step import score_pool
from svgd_label.device import default_device
from svgd_label.errors import UserError
from svgd_label.server.committees import Committees
from svgd_label.server.conf import Conf
from svgd_label.server.requests import TrainRequest
from svgd_label.server.scoring import log_scoring, paths, scoring_limit
from svgd_label.server.training_lock import BusyError, training_alone
from svgd_label.training import Case, Progress, train

logger = logging.getLogger(__name__)


class SVGDTrainer(TrainTask):  # type: ignore[misc]
    """Trains the committee on the saved labels. MONAI Label runs it in a process of its own."""

    def __init__(self, committees: Committees, conf: Conf) -> None:
        super().__init__("Committee trained jointly by Stein variational gradient descent")
        self.committees, self.conf = committees, conf
        self.stats_file = committees.pool.database.folder / "train_stats.json"

    def config(self) -> dict[str, Any]:
        """What the viewers offer to change. A list is a choice whose first entry is the default."""
        task = self.committees.task
        return {
            "pretrained": True,
            "steps": task.steps,
            "batch": task.batch,
            "learning_rate": task.learning_rate,
            "max_minutes": task.max_minutes,
            "device": ["auto", "cpu", *(["cuda"] if torch.cuda.is_available() else [])],
            "tracking": ["none", "mlflow"],
        }

    def stats(self) -> dict[str, Any]:
        """The last training's progress, as the viewers read it; empty before the first."""
        try:
            stats: dict[str, Any] = json.loads(self.stats_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none yet; a damaged one must not take every endpoint with it
            return {}
        if stats.get("status") in ("training", "scoring") and not psutil.pid_exists(stats.get("process", -1)):
            stats["status"] = "stopped"
        return stats

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Trains, publishes, scores; returns the final stats.

        Raises:
            HTTPException: 400 for a wrong parameter, or where there is nothing to train on; 409 while another process
                trains, as one does that has outlived its server.
        """
        try:
            with training_alone(self.committees.pool.database.folder):
                return self._train(request, datastore)
        except BusyError as error:
            logger.warning("no training starts: %s", error)
            raise HTTPException(409, f"{error}: wait for its end, then try again") from error

    def _train(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        try:
            return self._run(TrainRequest.read(request), datastore)
        except UserError as error:
            self._write_stats({**self.stats(), "status": "failed", "error": str(error)})
            raise HTTPException(400, str(error)) from error
        except Exception as error:
            self._write_stats({**self.stats(), "status": "failed", "error": f"{type(error).__name__}, see the log"})
            raise

    def _run(self, request: TrainRequest, datastore: Datastore) -> dict[str, Any]:
        pool = self.committees.pool
        task = self.committees.task.model_copy(update=request.task_fields())
        seed = self.conf.seed if request.seed is None else request.seed
        device = default_device() if request.device == "auto" else torch.device(request.device)
        version = pool.models.next_version()
        warm = self.committees.read_newest() if request.pretrained and task.warm_start else None
        committee = warm.committee if warm else checkpoint.new_committee(task, seed=seed)
        committee.to(device)

        started = time.time()  # a label that is saved from here on is one for the next training
        cases = [self._case(datastore, case.image, case.frequency) for case in pool.training_list()]
        validation = [self._case(datastore, image, 1) for image in pool.validation_list()]
        logger.info(
            "training model version %d from %s: %d labelled images, %d with repetition, %d for validation, %d steps",
            version, f"version {warm.version}" if warm else "random weights", len(cases),
            sum(case.frequency for case in cases), len(validation), task.steps,
        )  # fmt: skip
        stats: dict[str, Any] = {
            "version": version,
            "started": started,
            "process": os.getpid(),
            "training_list": {case.id: case.frequency for case in cases},
            "validation_list": [case.id for case in validation],
            "status": "training",
        }
        report = _StatsReport(stats, self._write_stats)
        result = train(
            task,
            cases,
            committee,
            seed=seed + version,
            validation=validation,
            on_progress=report,
            max_minutes=task.max_minutes,
            log_folder=pool.database.folder / "tensorboard" / f"{version:05d}",
            attach=self._tracking() if request.tracking == "mlflow" else None,
        )
        file = self.committees.file(version)
        metrics = {
            "started": started,
            "steps": result.steps,
            "seconds": round(result.seconds, 1),
            "loss": result.loss,
            "distance": result.distance,
            "validation_dice": result.validation_dice,
            "labelled": len(cases) + len(validation),
            "unusable": result.unusable,
            "stopped_early": result.stopped_early,
        }
        # In the file too: a kill between the two leaves a file that the next start publishes.
        checkpoint.save(file, committee, task, version=version, metrics=metrics)
        pool.models.publish(version, file, metrics)
        self.committees.prune()
        logger.info("model version %d is published", version)
        self._write_stats({**stats, "status": "scoring"})
        strategy = acquisition.strategy(self.conf.strategy)
        scoring = score_pool(
            pool,
            task,
            committee,
            paths(datastore, pool),
            version=version,
            strategy=strategy,
            seed=self.conf.seed,
            limit=scoring_limit(self.conf, device),
        )
        answer = log_scoring(pool, scoring)
        ended = time.time()
        stats |= {"status": "done", "unusable": {**result.unusable, **answer["unusable"]}, "ended": ended}
        stats["total_time"] = round(ended - stats["started"], 1)  # by which the Slicer module knows the end
        self._write_stats(stats)
        return stats

    def _case(self, datastore: Datastore, image: str, frequency: int) -> Case:
        label = datastore.get_label_uri(image, DefaultLabelTag.FINAL)
        return Case(image, datastore.get_image_uri(image), label, frequency)

    def _tracking(self) -> Callable[[Engine], None]:
        from monai.handlers import MLFlowHandler  # seconds to import, and only here when it is asked for

        folder = self.committees.pool.database.folder
        # The engineer's server where one is set; else a file, as MLflow 3 refuses the folder MONAI Label would take.
        uri = settings.MONAI_LABEL_TRACKING_URI or f"sqlite:///{folder / 'mlflow.db'}"

        def attach(engine: Engine) -> None:
            MLFlowHandler(
                tracking_uri=uri,
                experiment_name=self.committees.task.name,
                output_transform=lambda output: output["loss"],
                close_on_complete=True,
                artifacts=None,
            ).attach(engine)

        return attach

    def _write_stats(self, stats: dict[str, Any]) -> None:
        temporary = self.stats_file.with_name(f".{self.stats_file.name}.{os.getpid()}")
        try:
            # NaN is no JSON: one in here would take down every endpoint that shows the app's info.
            temporary.write_text(json.dumps(stats, allow_nan=False), encoding="utf-8")
            temporary.replace(self.stats_file)
        except (OSError, ValueError) as error:  # a training is worth more than its statistics
            logger.warning("the statistics of the training could not be written: %s", error)


class _StatsReport:
    """Turns a training's progress into the statistics that the viewers read, and into a line of the log."""

    def __init__(self, stats: dict[str, Any], write: Callable[[dict[str, Any]], None]) -> None:
        self.stats, self.write = stats, write
        self.logged = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        known = [dice for dice in progress.validation_dice or () if dice is not None]
        if known:  # left out without any: the Slicer module takes whatever stands here for a number
            self.stats["best_metric"] = round(sum(known) / len(known), 4)
        self.stats |= {
            # The names that the OHIF panel and the Slicer module read.
            "epoch": progress.part,
            "total_epochs": progress.parts,
            "step": progress.step,
            "steps": progress.steps,
            "loss": progress.loss if math.isfinite(progress.loss) else None,
            "validation_dice": progress.validation_dice,
            "distance_between_particles": progress.distance,
            "seconds_left": round(progress.seconds_left),
        }
        self.write(self.stats)
        if time.monotonic() - self.logged >= 10:
            self.logged = time.monotonic()
            logger.info(
                "step %d of %d: loss %.4f, distance between particles %.2f, about %d s left",
                progress.step, progress.steps, progress.loss, progress.distance, progress.seconds_left,
            )  # fmt: skip
