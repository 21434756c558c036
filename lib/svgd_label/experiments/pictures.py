"""What a picked image looked like to the committee that picked it: one slice each, kept for the report."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from svgd_label.inference import particle_moments, sliding_window
from svgd_label.svgd import Committee
from svgd_label.tasks import Task
from svgd_label.tasks.transforms import prepare_case
from svgd_label.training import Case
from svgd_label.uncertainty import maps


@torch.inference_mode()
def write_pictures(folder: Path, task: Task, committee: Committee, cases: Sequence[Case], step: int) -> None:
    """Writes ``STEP-ID.npz`` for each case: the axial slice where the committee is least sure, on the task's grid.

    ``image`` 0 to 255, ``prediction`` and ``reference`` in the task's values, all uint8; ``entropy`` in nats, float16.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = next(committee.parameters()).device
    committee.eval()
    for case in cases:
        prepared = prepare_case(task, case.image, case.label)
        image = prepared["image"].to(device)
        found = maps(sliding_window(task, lambda x: particle_moments(committee, x), image).unsqueeze(0))
        entropy = found.entropy[0].cpu()
        at = int(entropy.sum(dim=(0, 1)).argmax())
        np.savez_compressed(
            folder / f"{step:03d}-{case.id}.npz",
            image=(prepared["image"][0, :, :, at] * 255).byte().numpy(),
            prediction=found.mean[0].argmax(dim=0)[:, :, at].byte().cpu().numpy(),
            reference=prepared["label"][0, :, :, at].numpy(),
            entropy=entropy[:, :, at].numpy().astype(np.float16),
        )
