"""What an engineer sets with ``--conf KEY VALUE``: one typed object, refused in a sentence where it is wrong."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from svgd_label import acquisition
from svgd_label.errors import UserError
from svgd_label.server.dicom.address import is_web, read_address
from svgd_label.tasks import Task, load_task


class ConfError(UserError):
    """A setting that cannot be used."""


class Conf(BaseModel):
    """The app's settings. MONAI Label passes strings; other keys than these are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str = "hippocampus"
    """A preset or the path of a YAML file."""
    state: Path | None = None
    """Where the server keeps what it knows. Unless given: STUDIES/.svgd, with a DICOM server a folder of the user's."""
    strategy: str = "entropy_mi"
    """The acquisition that ranks the pool."""
    lease: Annotated[float, Field(gt=0, le=7 * 24 * 60)] = 60.0
    """Minutes an image stays with the client who asked for it."""
    initial: Literal["shipped", "none"] = "shipped"
    """Whether the committee that comes with the package is where a new study starts."""
    validation: Literal["fifth", "none"] | None = None
    """In place of the task's own."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of weights, order, augmentation and random strategies."""
    scoring_limit: Annotated[int, Field(ge=1)] = 1000
    """On CPU, at most so many unlabelled images are scored for one model version."""
    auto_train: Annotated[int, Field(ge=0)] = 0
    """Trains by itself when so many images have a label that the last training did not see; 0: never."""

    @field_validator("strategy")
    @classmethod
    def _known(cls, name: str) -> str:
        return acquisition.strategy(name).name

    @classmethod
    def read(cls, conf: dict[str, str]) -> "Conf":
        """From MONAI Label's dictionary.

        Raises:
            ConfError: an unknown key or a wrong value; the sentence names it and says what is allowed.
        """
        # MONAI Label itself puts this one among the app's settings.
        given = {key: value for key, value in conf.items() if key != "server_mode"}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            sentences = []
            for mistake in error.errors():
                key = ".".join(str(part) for part in mistake["loc"])
                if mistake["type"] == "extra_forbidden":
                    sentences.append(f"--conf {key}: there is no such setting; known are {', '.join(cls.model_fields)}")
                else:
                    message = mistake["msg"].removeprefix("Value error, ")
                    sentences.append(f"--conf {key} {mistake['input']}: {message}")
            raise ConfError("; ".join(sentences)) from None

    def state_folder(self, studies: str) -> Path:
        """Where the state of these studies is kept; ``studies`` is a folder or the address of a DICOMweb server.

        Raises:
            AddressError: an address that names no server.
        """
        own = read_address(studies).state if is_web(studies) else Path(studies) / ".svgd"
        return (self.state or own).expanduser().absolute()

    def load_task(self) -> Task:
        """The task, with what the settings put in place of its own fields."""
        task = load_task(self.task)
        return task if self.validation is None else task.model_copy(update={"validation": self.validation})
