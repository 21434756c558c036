"""A task: what is segmented, on which grid, by which network, trained and queried how. One YAML file, one object."""

import functools
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import yaml
from monai.networks import nets
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from typing_extensions import Self

from svgd_label.errors import UserError
from svgd_label.labels import plain_name
from svgd_label.likelihood import Likelihood

PRESETS = files("svgd_label.tasks") / "presets"

Extent = Annotated[int, Field(ge=8, le=512)]
Millimetres = Annotated[float, Field(gt=0, le=100)]
Size3 = tuple[Extent, Extent, Extent]


class TaskError(UserError):
    """A task that cannot be used; the sentence names file, field, value and what is allowed."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class Intensity(_Strict):
    """How grey values come to [0, 1]: fixed limits, or percentiles of each volume. Exactly one of the two."""

    clip: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.clip is None) == (self.percentiles is None):
            raise ValueError("give either clip: [low, high] or percentiles: [low, high]")
        low, high = self.clip or self.percentiles or (0, 0)
        if not low < high:
            raise ValueError(f"the lower limit {low} must be below the upper limit {high}")
        if self.percentiles and not 0 <= low < high <= 100:
            raise ValueError("percentiles lie between 0 and 100")
        return self


class Network(_Strict):
    """One of MONAI's networks, by its class name; the light U-Net unless said otherwise."""

    name: str = "UNet"
    arguments: dict[str, Any] = {"channels": [8, 16, 32, 64], "strides": [2, 2, 2]}


class Task(_Strict):
    """Everything that one segmentation task needs to know. The comments of ``docs/tasks.md`` say what each means."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=60)]
    description: str = ""
    labels: Annotated[tuple[str, ...], Field(min_length=1, max_length=100)]
    aliases: dict[str, tuple[str, ...]] = {}
    modality: Annotated[str, Field(pattern=r"^[A-Z]{2,4}$")] | None = None

    # Grid and grey values
    spacing: tuple[Millimetres, Millimetres, Millimetres] | None = None
    window: Size3
    patches: bool = False
    intensity: Intensity = Intensity(percentiles=(0.5, 99.5))

    # Committee and training
    network: Network = Network()
    particles: Annotated[int, Field(ge=1, le=50)] = 5
    steps: Annotated[int, Field(ge=1)] = 400
    batch: Annotated[int, Field(ge=1, le=256)] = 4
    optimizer: str = "Adam"
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.001
    schedule: Literal["constant", "cosine"] = "cosine"
    augment: bool = True
    flip_axes: tuple[Annotated[int, Field(ge=0, le=2)], ...] = (0, 1, 2)
    likelihood: Likelihood = Likelihood.LOG_DICE
    temperature: Annotated[float, Field(gt=0)] = 1.0
    bandwidth: Annotated[float, Field(gt=0)] | None = None
    prior_std: Annotated[float, Field(gt=0)] | None = None
    warm_start: bool = True
    max_minutes: Annotated[float, Field(gt=0)] = 15.0
    validation: Literal["fifth", "none"] = "fifth"

    # Scores and queries
    aggregate: Literal["mean", "sum"] = "mean"
    mi_grid: Size3 | Literal["padded"] = (32, 32, 32)
    mi_bins: Annotated[int, Field(ge=2, le=256)] = 64
    mi_over: Literal["mean", "sum", "max"] = "mean"
    alpha: Annotated[float, Field(gt=0)] = 1.0
    queries: Annotated[int, Field(ge=1)] = 5
    max_frequency: Annotated[int, Field(ge=1)] = 10
    clasp_steps: Annotated[int, Field(ge=1)] = 10

    @field_validator("labels")
    @classmethod
    def _labels(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        names = [plain_name(label) for label in labels]
        if len(set(names)) < len(names) or not all(names):
            raise ValueError("every structure needs a name of its own")
        if "background" in names:
            raise ValueError("background is always there as value 0; name the structures only")
        return labels

    @field_validator("optimizer")
    @classmethod
    def _optimizer(cls, name: str) -> str:
        known = sorted(
            n
            for n, c in vars(torch.optim).items()
            if isinstance(c, type) and issubclass(c, torch.optim.Optimizer) and c is not torch.optim.Optimizer
        )
        if name not in known:
            raise ValueError(f"not an optimizer of torch.optim; known are {', '.join(known)}")
        weight = torch.nn.Parameter(torch.zeros(1, 1, 2, 2, 2))
        weight.grad = torch.ones_like(weight)
        try:
            getattr(torch.optim, name)([weight], lr=0.1).step()
        except Exception as error:  # one wants a closure, one sparse gradients, one matrices
            raise ValueError("this optimizer cannot take plain steps on convolution weights; take Adam") from error
        return name

    @model_validator(mode="after")
    def _together(self) -> Self:
        unknown = sorted(set(self.aliases) - set(self.labels))
        if unknown:
            raise ValueError(f"aliases: {', '.join(unknown)} is no structure of this task ({', '.join(self.labels)})")
        owners: dict[str, str] = {plain_name(label): label for label in self.labels}
        for label, names in self.aliases.items():
            for name in names:
                owner = owners.setdefault(plain_name(name), label)
                if owner != label:
                    raise ValueError(f"aliases: {name} stands for both {owner} and {label}; keep it for one of them")
        if self.patches and self.mi_grid == "padded":
            raise ValueError("mi_grid: padded needs whole volumes; with patches: true take a size such as [32, 32, 32]")
        self._check_network()
        return self

    @property
    def classes(self) -> int:
        """Number of classes with the background."""
        return len(self.labels) + 1

    def _check_network(self) -> None:
        cls = getattr(nets, self.network.name, None)
        if not (isinstance(cls, type) and issubclass(cls, torch.nn.Module)):
            raise ValueError(f"network.name: monai.networks.nets has no network {self.network.name!r}")
        try:
            shape = _output_shape(self.network, self.classes, self.window)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"network: {self.network.name} with these arguments does not take a window of {self.window} ({reason})"
            ) from error
        if shape != (wanted := (1, self.classes, *self.window)):
            raise ValueError(
                f"network: {self.network.name} turns a window of {self.window} into {shape}, not into {wanted}; "
                "take a window whose sides it can halve, and no deep supervision"
            )

    def takes(self, window: tuple[int, int, int]) -> bool:
        """Whether the network turns a window of this size into one of the same size."""
        return _takes(self.network.model_dump_json(), self.classes, window)

    def build_network(self) -> torch.nn.Module:
        """One freshly initialised particle: (B, 1, *spatial) -> logits (B, classes, *spatial)."""
        cls = getattr(nets, self.network.name)
        network: torch.nn.Module = cls(
            spatial_dims=3, in_channels=1, out_channels=self.classes, **self.network.arguments
        )
        # Measured 1.7 times faster than contiguous tensors on CPU; torch's stubs lack the argument.
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        return network


def _output_shape(network: Network, classes: int, window: tuple[int, int, int]) -> tuple[int, ...]:
    """What becomes of a window in training and in inference, without computing it; the first that is another shape."""
    with torch.device("meta"), torch.inference_mode():
        module = getattr(nets, network.name)(spatial_dims=3, in_channels=1, out_channels=classes, **network.arguments)
        batch = torch.empty(2, 1, *window)  # of one, batch normalisation cannot train
        shapes = [(1, *module.train(training)(batch).shape[1:]) for training in (True, False)]
        return next((shape for shape in shapes if shape != (1, classes, *window)), shapes[0])


@functools.cache
def _takes(network: str, classes: int, window: tuple[int, int, int]) -> bool:
    try:
        return _output_shape(Network.model_validate_json(network), classes, window) == (1, classes, *window)
    except Exception:  # whatever it is, the network does not take it
        return False


def preset_names() -> list[str]:
    """The tasks that come with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in PRESETS.iterdir() if entry.name.endswith(".yaml"))


def load_task(name: str) -> Task:
    """A preset by its name, or a task of one's own by the path of its YAML file.

    Raises:
        TaskError: no such preset or file, or a wrong value; one sentence a mistake, with file, field and value.
    """
    if name in preset_names():
        return _parse((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"), f"preset {name}")
    path = Path(name).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        raise TaskError(f"there is no task {name!r}: take {', '.join(preset_names())}, or the path of a .yaml file")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path}: the task cannot be read ({error})") from error
    return _parse(text, str(path))


def _parse(text: str, source: str) -> Task:
    try:
        fields = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise TaskError(f"{source}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(fields, dict):
        raise TaskError(f"{source}: a task is a list of 'field: value' lines")
    return read_task(fields, source)


def read_task(fields: Mapping[str, Any], source: str) -> Task:
    """A task from its fields.

    Raises:
        TaskError: a wrong value; one sentence a mistake, with source, field and value.
    """
    try:
        return Task.model_validate(fields)
    except ValidationError as error:
        raise TaskError("; ".join(_sentence(source, mistake) for mistake in error.errors())) from None


def _sentence(source: str, mistake: Any) -> str:
    field = ".".join(str(part) for part in mistake["loc"] if not str(part).startswith(("tuple[", "literal[")))
    message = str(mistake["msg"]).removeprefix("Value error, ")
    if mistake["type"] == "extra_forbidden":
        return f"{source}: there is no field {field!r}; known are {', '.join(Task.model_fields)}"
    if mistake["type"] == "missing":
        return f"{source}: the field {field!r} is missing"
    if not field:
        return f"{source}: {message}"
    return f"{source}: {field} is {mistake['input']!r}: {message}"
