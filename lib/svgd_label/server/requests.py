"""What a client may ask of a training: typed, and refused in a sentence where it is wrong."""

from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from svgd_label.errors import UserError

# What MONAI Label and its viewers put into every request besides.
_FOREIGN = frozenset({"model", "client_id", "gpus", "local_rank", "name", "enqueue", "bundle_path"})


class RequestError(UserError):
    """A request that cannot be served."""


class TrainRequest(BaseModel):
    """Parameters of ``POST /train/svgd``; what is left out is the task's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pretrained: bool = True
    """Whether the last committee is where the training starts."""
    steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    batch: Annotated[int, Field(ge=1, le=256)] | None = None
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    multi_gpu: Literal[False] = False
    """Several GPUs are refused until they are used right."""
    tracking: Literal["none", "mlflow"] = "none"

    @field_validator("device")
    @classmethod
    def _there(cls, device: str) -> str:
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("this machine has no CUDA device; take auto or cpu")
        return device

    @classmethod
    def read(cls, request: dict[str, Any]) -> "TrainRequest":
        """From a client's JSON. A list, as viewers send the choices they were offered, stands for its first entry.

        Raises:
            RequestError: an unknown parameter or a wrong value.
        """
        given = {
            key: value[0] if isinstance(value, list) and value else value
            for key, value in request.items()
            if key not in _FOREIGN
        }
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            sentences = []
            for mistake in error.errors():
                key = ".".join(str(part) for part in mistake["loc"])
                if mistake["type"] == "extra_forbidden":
                    sentences.append(f"train: there is no parameter {key!r}; known are {', '.join(cls.model_fields)}")
                else:
                    sentences.append(f"train: {key} is {mistake['input']!r}: {mistake['msg']}")
            raise RequestError("; ".join(sentences)) from None

    def task_fields(self) -> dict[str, Any]:
        """The fields of the task that this request replaces."""
        fields = self.model_dump(include={"steps", "batch", "learning_rate", "max_minutes"})
        return {key: value for key, value in fields.items() if value is not None}
