"""One training iteration: every particle forward and backward, then the joint SVGD step; on a GPU as one CUDA graph."""

import contextlib
import gc
import logging
from collections.abc import Callable
from typing import Any

import torch
from monai.utils import CommonKeys as Keys
from torch import Tensor

from svgd_label.device import training_autocast
from svgd_label.svgd import SVGD, Committee
from svgd_label.tasks import Task

logger = logging.getLogger(__name__)

Iteration = Callable[[Any, dict[str, Tensor]], dict[str, Any]]
"""What an ignite engine does with a batch."""

WARM_UP = 3
"""So many iterations run as they are before one is captured: by then libraries are loaded and Adam has its moments."""


def new_optimizer(task: Task, committee: Committee) -> SVGD:
    """SVGD around the task's optimizer, over all particles of a committee on the device where it is trained."""
    # One pass over all parameters, where torch offers it for every device, instead of several.
    options: dict[str, Any] = {"fused": True} if task.optimizer in ("Adam", "AdamW", "SGD") else {}
    rate: float | Tensor = task.learning_rate
    if _can_be_captured(task, committee):
        rate, options = torch.tensor(rate, device=_device(committee)), options | {"capturable": True}
    optimizer = getattr(torch.optim, task.optimizer)(committee.parameters(), lr=rate, **options)
    optimizer._warned_capturable_if_run_uncaptured = True  # the first steps are not captured, and that is no mistake
    return SVGD(
        optimizer,
        committee.trainable(),
        bandwidth=task.bandwidth,
        prior_std=task.prior_std,
    )


def new_iteration(task: Task, committee: Committee) -> Iteration:
    """The fastest iteration for a committee where it lies (``bench svgd_step``), for one engine and one optimizer."""
    return CapturedIteration() if _can_be_captured(task, committee) else svgd_iteration


def svgd_iteration(engine: Any, batch: dict[str, Tensor]) -> dict[str, Any]:
    """Forward and backward one particle at a time, so that one graph is alive, then one joint step."""
    images = batch[Keys.IMAGE].to(engine.state.device, memory_format=torch.channels_last_3d)
    return {Keys.LOSS: _step(engine, images, batch[Keys.LABEL].to(engine.state.device)).item()}


class CapturedIteration:
    """``svgd_iteration`` on a GPU, captured once and then replayed, with the particles side by side.

    The networks are small: started one by one, their thousands of kernels leave the GPU idle for nine tenths of the
    time. The activations of all particles exist at once. Where that is too much memory, where the network looks at
    values, and where hooks stand before the optimizer's step, which a replay would pass over, all goes on uncaptured;
    but what a capture that failed has taken of the GPU's memory is not given back. Labels are looked at in the first
    iterations only.
    """

    def __init__(self) -> None:
        self._number = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._images = self._labels = self._loss = torch.empty(0)
        self._streams: list[torch.cuda.Stream] = []

    def __call__(self, engine: Any, batch: dict[str, Tensor]) -> dict[str, Any]:
        """One iteration of the engine; all batches must be of one size."""
        if not self._number:
            device = engine.state.device
            self._images = batch[Keys.IMAGE].to(device, memory_format=torch.channels_last_3d, copy=True)
            self._labels = batch[Keys.LABEL].to(device, copy=True)
            self._streams = [torch.cuda.Stream(device) for _ in engine.network.particles]
        else:
            self._images.copy_(batch[Keys.IMAGE])
            self._labels.copy_(batch[Keys.LABEL])
        if self._number == WARM_UP and not engine.optimizer._optimizer_step_pre_hooks:
            self._capture(engine)
        self._number += 1
        if self._graph is None:
            # On one stream, so that one particle's activations are alive, but not the default one, as in the capture.
            self._loss = _step(engine, self._images, self._labels, self._streams[:1] * len(self._streams))
        else:
            self._graph.replay()
        return {Keys.LOSS: self._loss.item()}

    def _capture(self, engine: Any) -> None:
        gc.collect()  # the graph of the training before, with its memory
        graph = torch.cuda.CUDAGraph()
        try:
            # The outer context leads back to this stream from a capture that fails, which torch by itself does not.
            # The thread that makes the next samples goes on meanwhile.
            here = torch.cuda.stream(torch.cuda.current_stream())
            with here, torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._loss = _step(engine, self._images, self._labels, self._streams)
        except RuntimeError as error:
            reason = str(error.__context__ or error).strip().splitlines()[0]
            logger.warning("the training steps cannot be captured as a CUDA graph and take longer: %s", reason)
        else:
            self._graph = graph


def _step(engine: Any, images: Tensor, labels: Tensor, streams: list[torch.cuda.Stream] | None = None) -> Tensor:
    """One step of all particles, on a stream each where there are streams; the mean loss."""
    committee: Committee = engine.network
    if not committee.training:  # going through all modules of all particles takes a while
        committee.train()
    engine.optimizer.zero_grad()
    losses = []
    for number, particle in enumerate(committee.particles):
        with _after_this_one(streams[number]) if streams else contextlib.nullcontext():
            with training_autocast(images.device):
                logits = particle(images)
            loss = engine.loss_function(logits, labels)
            loss.backward()
            losses.append(loss.detach())
    for stream in streams or ():
        torch.cuda.current_stream().wait_stream(stream)
    engine.optimizer.step()
    return torch.stack(losses).mean()


def _after_this_one(stream: torch.cuda.Stream) -> torch.cuda.StreamContext:
    stream.wait_stream(torch.cuda.current_stream())
    return torch.cuda.stream(stream)


def _device(committee: Committee) -> torch.device:
    return next(committee.parameters()).device


def _can_be_captured(task: Task, committee: Committee) -> bool:
    # Of the others some look at values, and some count their steps in Python.
    return _device(committee).type == "cuda" and task.optimizer in ("Adam", "AdamW")
