"""Draws why images are compared without padding: on a padded grid, mutual information ranks the sizes of the boxes.

    python docs/draw_box_size.py --data ../shared/data/hippocampus --out docs/pictures/box_size.png

Every pair of some volumes of the Decathlon's hippocampus set: the mutual information of the two images against that of
the masks that say where each was padded, which know nothing of what the images show.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from monai.transforms import ResizeWithPadOrCrop

from svgd_label.experiments.dataset import Dataset
from svgd_label.scoring import mi_codes
from svgd_label.similarity import mutual_information_matrix
from svgd_label.tasks import load_task
from svgd_label.tasks.transforms import prepare_image


def main() -> None:
    """Reads the images, prints the two correlations and writes the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder in MSD layout with splits.json")
    parser.add_argument("--number", type=int, default=40, help="how many volumes, the first ones of the pool")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/box_size.png"))
    arguments = parser.parse_args()

    common = load_task("hippocampus")
    padded = common.model_copy(update={"mi_grid": "padded"})
    cases = Dataset.read(arguments.data).splits["pool"][: arguments.number]
    images = [prepare_image(common, case.image).as_tensor() for case in cases]
    pad = ResizeWithPadOrCrop(spatial_size=common.window)
    masks = [np.asarray(pad(image * 0 + 1)).astype(np.uint8) for image in images]
    pairs = np.triu_indices(len(images), k=1)
    of_masks = mutual_information_matrix(masks, masks)[pairs]

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    for task, axis, title in (
        (padded, axes[0], f"zero-padded to {'x'.join(map(str, common.window))}"),
        (common, axes[1], f"resampled to {'x'.join(map(str, common.mi_grid))}, no padding"),
    ):
        codes = [mi_codes(task, image) for image in images]
        of_images = mutual_information_matrix(codes, codes, bins=task.mi_bins)[pairs]
        correlation = np.corrcoef(of_masks, of_images)[0, 1]
        print(f"{title}: correlation {correlation:.3f} over {len(of_images)} pairs")  # noqa: T201
        axis.scatter(of_masks, of_images, s=5, alpha=0.5, color="#0072b2", linewidths=0)
        axis.set(title=f"{title}\ncorrelation {correlation:.3f}", xlabel="MI of the padding masks, nats")
    axes[0].set_ylabel("MI of the images, nats")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=100)


if __name__ == "__main__":
    main()
