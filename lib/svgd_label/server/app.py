"""The MONAI Label app: says which tasks there are, and what happens at start and when a label is saved."""

import functools
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from fastapi import HTTPException
from monailabel.config import settings
from monailabel.endpoints.train import run_model
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask

import svgd_label
from svgd_label import acquisition
from svgd_label.active_step import refresh_ranking, settle, write_first_order
from svgd_label.device import default_device
from svgd_label.errors import UserError
from svgd_label.inference import dice
from svgd_label.pool import ORIGINAL, Database, LabelVersion, OutdatedVersion, Pool
from svgd_label.process import keep_freed_memory, set_thread_policy
from svgd_label.server import login, ohif, routes
from svgd_label.server.auto_train import AutoTrain, is_running, is_waiting
from svgd_label.server.committees import Committees
from svgd_label.server.conf import Conf
from svgd_label.server.datastore import SafeDatastore
from svgd_label.server.dicom.address import is_web, read_address, series_folder
from svgd_label.server.dicom.datastore import DicomDatastore
from svgd_label.server.dicom.mirror import LOOK_SECONDS
from svgd_label.server.dicom.proxy import proxy_routes
from svgd_label.server.dicom.web import DicomServer
from svgd_label.server.infer import SVGDInfer, UncertaintyInfer
from svgd_label.server.page import page_routes
from svgd_label.server.scoring import EntropyMI, paths, scoring_limit
from svgd_label.server.sessions import remove_expired
from svgd_label.server.strategy import RandomStrategy, SVGDStrategy
from svgd_label.server.temporary import keep_temporary_files_in
from svgd_label.server.trainer import SVGDTrainer
from svgd_label.server.worker import Worker
from svgd_label.tasks import Task
from svgd_label.tasks.transforms import load_label

logger = logging.getLogger(__name__)

MODEL = "svgd"
UNCERTAINTY = "svgd_uncertainty"
SCORING = "entropy_mi"
RETRY_SECONDS = 600.0
"""Until images that could not be scored are tried again with the same committee."""


class SVGDLabel(MONAILabelApp):  # type: ignore[misc]
    """Active learning with a committee trained by SVGD."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        set_thread_policy()  # for the training and scoring processes that are started from here
        try:
            self._server_mode = False  # the watcher may call before MONAI Label's constructor has set it
            self._ranking, self._folder, self._comparing = (Worker(name) for name in ("ranking", "folder", "comparing"))
            self._asked: tuple[int, dict[str, str | None]] | None = None
            self._not_before = 0.0
            self.settings = Conf.read(conf or {})
            self.task = self.settings.load_task()
            if not studies:
                raise UserError("no studies folder was given; the state would go into whatever folder this runs in")
            state = self.settings.state_folder(studies)
            self._dicom = DicomServer(read_address(studies)) if is_web(studies) else None
            database = Database(state, task=self.task.name)
            self.pool = Pool(
                database,
                validation=self.task.validation,
                max_frequency=self.task.max_frequency,
                lease_minutes=self.settings.lease,
            )
            _check_labels(database, self.task)
            settle(self.pool, self.task)
            self.committees = Committees(self.pool, self.task, state / "committees")
            self.committees.adopt_files()
            if self.settings.initial == "shipped":
                self.committees.adopt_shipped()
            elif self.pool.models.newest() == 0:
                self.pool.models.withdraw(0)
            super().__init__(
                app_dir=app_dir,
                # What a DICOM server holds is mirrored: from here on, its studies are a folder too.
                studies=studies if self._dicom is None else str(series_folder(state)),
                conf=conf,
                name=f"SVGD Label: {self.task.name}",
                description=self.task.description or "Active learning with a committee trained by SVGD",
                version=svgd_label.__version__,
                labels=list(self.task.labels),
            )
        except UserError as error:
            logger.error("cannot start: %s", error)
            # The server would print a page of traceback below the sentence.
            logging.getLogger("uvicorn.error").addFilter(lambda record: "Traceback" not in record.getMessage())
            raise SystemExit(f"Error: {error}") from None
        self.auto_train = AutoTrain(
            self.settings.auto_train, self.pool, self._datastore.labels, functools.partial(run_model, MODEL)
        )
        # A next-sample request reads and never computes; what is to be scored is seen at start and by the watcher.
        self._auto_update_scoring = False

    def init_datastore(self) -> Datastore:
        """The store that cannot lose a label."""
        common = {
            "state": self.pool.database.folder,
            "pool": self.pool,
            "task": self.task,
            "auto_reload": settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            "beside": "monailabel.app" not in sys.modules,  # which the server is, and no process that it starts
            "on_change": functools.partial(self._folder.do, self._folder_changed),
        }
        if self._dicom is None:
            return SafeDatastore(self.studies, **common)
        return DicomDatastore(
            self._dicom,
            self._search_filter(),
            pause=min(LOOK_SECONDS, settings.MONAI_LABEL_DICOMWEB_CACHE_EXPIRY),
            **common,
        )

    def _search_filter(self) -> dict[str, Any]:
        """Which series are images: those of the task's modality, or as the setting says where somebody has set it."""
        name, chosen = "MONAI_LABEL_DICOMWEB_SEARCH_FILTER", settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER
        is_stock = chosen == type(settings).model_fields[name].default  # which start_server writes into its environment
        return {"Modality": self.task.modality} if self.task.modality and is_stock else dict(chosen)

    def init_infers(self) -> dict[str, InferTask]:
        """The pre-segmentation first, because viewers preselect the first; where it is in doubt."""
        return {MODEL: SVGDInfer(self.committees), UNCERTAINTY: UncertaintyInfer(self.committees)}

    def init_trainers(self) -> dict[str, TrainTask]:
        """The committee's trainer."""
        return {MODEL: SVGDTrainer(self.committees, self.settings)}

    def init_strategies(self) -> dict[str, Strategy]:
        """Ours first, because viewers preselect the first; random for comparison."""
        return {MODEL: SVGDStrategy(self.pool, self.settings.strategy), "random": RandomStrategy(self.pool)}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """Scores for the whole pool."""
        return {SCORING: EntropyMI(self.committees, self.settings)}

    def on_init_complete(self) -> None:
        """In the server, once: routes, warm-up, and whatever a killed server left unscored."""
        from monailabel.app import app  # the module that is just being started; earlier it would start itself

        dicom = self._dicom
        page = page_routes(self.pool, self.task, self.init_trainers()[MODEL], self.auto_train, ohif=dicom is not None)
        keep_temporary_files_in(self.pool.database.folder / "temporary")
        login.accept_tokens()
        routes.install(app, page, *([] if dicom is None else [ohif.router, proxy_routes(dicom)]))
        if not settings.MONAI_LABEL_CORS_ORIGINS:  # fixed before an app is loaded, so it can only be told
            logger.warning(
                "web pages of every origin may call this server, on every address it listens on: SECURITY.md says how "
                "--host and MONAI_LABEL_CORS_ORIGINS close it, and 'python main.py serve' starts it closed"
            )
        super().on_init_complete()
        if isinstance(self._datastore, DicomDatastore):
            self._datastore.start()
        self._comparing.do(self._warm_up)
        self.auto_train.start()
        # A killed server may have acknowledged a label that its ranking does not know of yet.
        self._folder.do(self._folder_changed)

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> Any:
        """As MONAI Label's; notes which version the annotator is going to correct, and that he still works on it.

        Raises:
            HTTPException: 400 where bands of doubt are to be stored, since they would count as a label.
        """
        stored = bool(request.get("save_label"))
        if stored and request.get("model") != MODEL:
            raise HTTPException(400, "where the committee is unsure is no label and is not stored as one")
        image, store = request.get("image"), datastore or self._datastore
        known = isinstance(image, str) and os.sep not in image and store.get_image_uri(image)
        # By its path: MONAI Label takes an id for a path where something of that name lies in the working directory.
        result = super().infer({**request, "image": known} if known else request, store)
        try:
            if known and stored:  # which it leaves undone for a path
                said = {"model": request.get("model"), "params": result["params"]}
                result["label"] = store.save_label(image, result["file"], request.get("label_tag") or ORIGINAL, said)
            version = result["params"].get("model_version")
            if version is not None and isinstance(image, str) and self.pool.overview.image_state(image):
                if request.get("model") == MODEL:  # bands of a newer version leave the older proposal on the screen
                    self.pool.inferred(image, version)
                if client := request.get("client_id"):
                    self.pool.touch(image, str(client))
        except BaseException:  # nobody gets the file, and only who has sent it would remove it
            if file := result.get("file"):
                Path(file).unlink(missing_ok=True)
            raise
        return result

    def on_save_label(self, image_id: str, label_id: str) -> None:
        """A new label changes the similarity to the labelled set at once; picks stay until the next training."""
        self._ranking.do(self._refresh)
        if versions := self._datastore.labels.versions(image_id):  # none of what is saved as a pre-segmentation
            self._comparing.do(functools.partial(self._compare, versions[-1]))
        self._folder.do(self._score_what_is_left)
        self.auto_train.consider()

    def on_flag(self, image: str) -> None:
        """An image that left or came back changes the pool, so the ranking; it may not have been scored yet."""
        self._folder.do(self._folder_changed)

    def train(self, request: dict[str, Any]) -> Any:
        """In the background process: annotators come first."""
        self._yield_to_annotators()
        return super().train(request)

    def scoring(self, request: dict[str, Any], datastore: Datastore | None = None) -> Any:
        """In the background process: annotators come first."""
        self._yield_to_annotators()
        return super().scoring(request, datastore)

    def _yield_to_annotators(self) -> None:
        if not self._server_mode:  # with run_sync, MONAI Label works inside the server
            psutil.Process().nice(10)
            keep_freed_memory()

    def cleanup_sessions(self) -> None:
        """At start and every five minutes."""
        if self._sessions is not None:
            remove_expired(self._sessions)

    def _warm_up(self) -> None:
        """Reads the committee and runs it once, so that the first request is as quick as the second."""
        with self.committees.lock:
            current = self.committees.current()
            if current is not None:
                with torch.inference_mode():
                    current.committee.eval()(torch.zeros(1, 1, *self.task.window, device=default_device()))
        logger.info("warmed up with %s", f"model version {current.version}" if current else "no committee yet")

    def _folder_changed(self) -> None:
        """Images came or went, or labels other than by a save."""
        if self._server_mode:
            self._ranking.do(self._refresh)
            self._score_what_is_left()
            if self.pool.ranking_version() is None:
                where, limit = paths(self._datastore, self.pool), scoring_limit(self.settings, default_device())
                write_first_order(self.pool, self.task, where, seed=self.settings.seed, limit=limit)
            self.auto_train.consider()

    def _score_what_is_left(self) -> None:
        """A scoring run where the newest version has not scored everything, and may be able to."""
        version = self.pool.models.newest()
        if version is None or is_waiting("scoring"):
            return
        left = set() if self.pool.is_limited(version) else set(self.pool.pool_images())
        left -= self.pool.scored_images(version)
        acquired = any(step.version >= version for step in self.pool.acquisitions())
        if self.pool.ranking_version() == version and acquired and not left:
            return
        if not acquired and is_running("train"):  # whose own scoring this is, or which will make it needless
            return
        files = self.pool.fingerprints()
        asked = version, {image: files.get(image) for image in left}
        if asked == self._asked and time.monotonic() < self._not_before:
            return  # a run that has just failed on all of these would do so again
        with self.committees.lock:
            usable = self.committees.current() is not None  # else it is of another shape than the task's
        self._asked, self._not_before = asked, time.monotonic() + RETRY_SECONDS
        if not usable:
            return
        logger.info("model version %d has not scored and picked everything: scoring starts", version)
        super().async_scoring(SCORING)

    def _compare(self, saved: LabelVersion) -> None:
        """Dice between a new label and what the committee had proposed: the annotator's own learning curve."""
        image, path = saved.image, self._datastore.get_image_uri(saved.image)
        proposed = None if saved.model_version is None else self.committees.segment(path, saved.model_version)
        if proposed is None:
            return  # nothing was proposed, or so long ago that a newer committee has come in between
        version, segmentation = proposed
        scores = dice(self.task, segmentation.labels, load_label(self.task, path, str(saved.file))[0].numpy())
        if not np.all(np.isnan(scores)):
            self._datastore.labels.record_dice(image, saved.number, float(np.nanmean(scores)))
            logger.info(
                "label of %s: Dice %.3f with what model version %d proposed", image, np.nanmean(scores), version
            )

    def _refresh(self) -> None:
        version = self.pool.ranking_version()
        if version is None:
            return
        began = time.monotonic()
        try:
            refresh_ranking(
                self.pool,
                self.task,
                version=version,
                strategy=acquisition.strategy(self.settings.strategy),
                seed=self.settings.seed,
            )
        except OutdatedVersion as error:  # a training's own ranking has come in between, and is newer
            logger.info("ranking not refreshed: %s", error)
        # With many labels in a row, requests would share this process with a ranking that never ends.
        time.sleep(4 * (time.monotonic() - began))


def _check_labels(database: Database, task: Task) -> None:
    """Refuses a task whose structures are not those that the stored labels' values mean, in the same order.

    Raises:
        UserError: a structure was renamed, removed or put between others. New ones at the end are welcome.
    """
    known = json.loads(database.get("labels") or "[]")
    if list(task.labels[: len(known)]) != known:
        raise UserError(
            f"the labels in {database.folder} were saved for the structures {', '.join(known)}, in this order; "
            f"the task {task.name} has {', '.join(task.labels)}: keep theirs first, or give another --conf state"
        )
    database.set("labels", json.dumps(task.labels))
