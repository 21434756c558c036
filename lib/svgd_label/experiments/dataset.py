"""A labelled data set in the layout of the Medical Segmentation Decathlon, with splits.json beside it."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from svgd_label.errors import UserError
from svgd_label.pool.files import EXTENSIONS, is_plain_id, split_extension
from svgd_label.training import Case


class DatasetError(UserError):
    """A data set that cannot be used; the sentence says what is missing."""


class _Splits(BaseModel):
    """The content of splits.json: file names, the same in imagesTr and labelsTr."""

    pool: list[str] = []
    dev: list[str] = []
    test: list[str] = []
    initial: Annotated[int, Field(ge=1, strict=True)] | None = None


@dataclass(frozen=True)
class Dataset:
    """The cases of each split: ``pool``, ``dev``, ``test``, each of which may be empty."""

    folder: Path
    splits: dict[str, list[Case]]
    initial: int | None = None
    """How many cases of the pool an experiment begins with, where splits.json says so."""

    @classmethod
    def read(cls, folder: Path) -> "Dataset":
        """Reads imagesTr, labelsTr and splits.json.

        Raises:
            DatasetError: a file is missing or cannot be used, splits.json is not what it should be, or a case stands in
                it twice: what is measured on must not be trained on.
        """
        file = folder / "splits.json"
        try:
            content = _Splits.model_validate(json.loads(file.read_text(encoding="utf-8")))
        except ValidationError as error:
            wrong = error.errors()[0]
            field = ".".join(str(part) for part in wrong["loc"]) or "the whole"
            raise DatasetError(f"{file}: {field} is {wrong['input']!r} ({wrong['msg']})") from error
        except FileNotFoundError:
            raise DatasetError(f"there is no {file}: docs/experiments.md shows what stands in it") from None
        except (OSError, ValueError) as error:
            raise DatasetError(f"{file}: cannot be read ({error})") from error
        splits = {
            split: [
                Case(split_extension(name)[0], str(folder / "imagesTr" / name), str(folder / "labelsTr" / name))
                for name in names
            ]
            for split, names in content.model_dump(exclude={"initial"}).items()
        }
        cases = [case for split in splits.values() for case in split]
        for case in cases:
            for path in (Path(case.image), Path(case.label)):
                if not split_extension(path.name)[1] or not is_plain_id(case.id):
                    raise DatasetError(f"{file}: {path.name!r} is no name of a {', '.join(EXTENSIONS)} file")
                if not path.is_file():
                    raise DatasetError(f"{path}: named in splits.json, but not there")
        if twice := [case for case, times in Counter(case.id for case in cases).items() if times > 1]:
            raise DatasetError(f"{file}: each case may stand in one split, once; not so {', '.join(twice[:5])}")
        return cls(folder, splits, content.initial)
