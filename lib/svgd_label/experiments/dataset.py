"""A labelled data set in the layout of the Medical Segmentation Decathlon, with splits.json beside it."""

import json
from dataclasses import dataclass
from pathlib import Path

from svgd_label.errors import UserError
from svgd_label.training import Case


class DatasetError(UserError):
    """A data set that cannot be used; the sentence says what is missing."""


@dataclass(frozen=True)
class Dataset:
    """The cases of each split (``pool``, ``dev``, ``test``, as far as splits.json has them)."""

    folder: Path
    splits: dict[str, list[Case]]
    initial: int | None = None
    """How many cases of the pool an experiment begins with, where splits.json says so."""

    @classmethod
    def read(cls, folder: Path) -> "Dataset":
        """Reads imagesTr, labelsTr and splits.json.

        Raises:
            DatasetError: a file is missing, or splits.json is not a mapping of names to lists of file names.
        """
        try:
            content = json.loads((folder / "splits.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DatasetError(f"{folder / 'splits.json'}: cannot be read ({error})") from error
        splits = {
            name: [
                Case(file.removesuffix(".nii.gz"), str(folder / "imagesTr" / file), str(folder / "labelsTr" / file))
                for file in files
            ]
            for name, files in content.items()
            if isinstance(files, list)
        }
        for case in (case for cases in splits.values() for case in cases):
            for path in (case.image, case.label):
                if not Path(path).is_file():
                    raise DatasetError(f"{path}: named in splits.json, but not there")
        return cls(folder, splits, content.get("initial"))
