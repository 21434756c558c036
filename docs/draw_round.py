"""Draws what a served study's committee proposes first: image, pre-segmentation, entropy.

    python docs/draw_round.py studies/sample --task sample --out docs/pictures/round.png

The study must have been trained at least once. Take synthetic images for pictures that are published.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import ListedColormap

from svgd_label.checkpoint import load
from svgd_label.inference import particle_moments, sliding_window
from svgd_label.pool import Database, Pool
from svgd_label.tasks import load_task
from svgd_label.tasks.transforms import prepare_image
from svgd_label.uncertainty import maps

COLOURS = ListedColormap(["#e69f00", "#56b4e9"])


def main() -> None:
    """Reads the state folder and writes the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", type=Path)
    parser.add_argument("--task", default="sample")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/round.png"))
    arguments = parser.parse_args()

    task = load_task(arguments.task)
    pool = Pool(Database(arguments.studies / ".svgd", task=task.name), validation="none", max_frequency=1)
    file = pool.models.file()
    if file is None:
        raise SystemExit(f"{arguments.studies}: train once before a picture can be drawn")
    committee = load(file, task, device=torch.device("cpu")).committee.eval()
    labelled = set(pool.labelled())
    first = [row for row in pool.ranking() if row.image not in labelled][:3]

    figure, axes = plt.subplots(len(first), 3, figsize=(7.2, 2.0 * len(first)), layout="constrained", squeeze=False)
    for row, line in zip(first, axes, strict=True):
        image = prepare_image(task, str(arguments.studies / f"{row.image}.nii.gz")).as_tensor()
        with torch.inference_mode():
            found = maps(sliding_window(task, lambda x: particle_moments(committee, x), image).unsqueeze(0))
        labels, entropy = found.mean[0].argmax(dim=0), found.entropy[0]
        cut = int((labels > 0).sum(dim=(1, 2)).argmax())
        grey = np.rot90(image[0, cut].numpy())
        drawn = np.rot90(labels[cut].numpy())
        for axis in line:
            axis.imshow(grey, cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
        line[1].imshow(drawn, cmap=COLOURS, vmin=1, vmax=2, alpha=0.6 * (drawn > 0))
        unsure = line[2].imshow(np.rot90(entropy[cut].numpy()), cmap="magma", vmin=0, vmax=np.log(task.classes))
        line[0].set_title(f"{row.image}\nscore {row.score:.2f}", fontsize=9)
        line[1].set_title("pre-segmentation", fontsize=9)
        line[2].set_title(f"entropy, mean {row.entropy:.3f} nats", fontsize=9)
    figure.colorbar(unsure, ax=axes[:, 2], shrink=0.6, label="nats")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=130)


if __name__ == "__main__":
    main()
