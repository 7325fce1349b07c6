"""What a run is made of: the schema, the defaults and the checks of every setting.

The files in `configs/` say what they change; the defaults here are the paper's MNIST experiment.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationError,
    model_validator,
)

from ncsn_jax.errors import UserError
from ncsn_jax.losses import Projection
from ncsn_jax.models import MLP, NCSN
from ncsn_jax.noise import geometric_sigmas

Fraction = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""32 bits: jax would take a larger seed for another, smaller one."""


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Data(Settings):
    """What is learned: images, or points of the plane."""

    name: str = "mnist"
    """A dataset's name, one of `ncsn_jax.data.load`'s."""
    data_dir: str | None = None
    """Where prepared datasets lie; TFDS's own directory if None. The points need none."""
    random_flip: bool = False
    """Whether training images are mirrored left to right with probability ½."""


class NoiseLevels(Settings):
    """The geometric noise levels that a score network is trained on."""

    sigma_begin: PositiveFloat = 1.0
    sigma_end: PositiveFloat = 0.01
    num_scales: PositiveInt = 10

    @model_validator(mode="after")
    def _sigmas_descend(self) -> "NoiseLevels":
        geometric_sigmas(self.sigma_begin, self.sigma_end, self.num_scales)
        return self

    @property
    def sigmas(self) -> tuple[float, ...]:
        return tuple(geometric_sigmas(self.sigma_begin, self.sigma_end, self.num_scales).tolist())


class NcsnModel(NoiseLevels):
    """The network of 2019, for images."""

    name: Literal["ncsn"] = "ncsn"
    num_filters: Annotated[int, Field(ge=2)] = 64
    """Channels of the first stage; InstanceNorm++ takes a variance over them, so at least 2."""

    def build(self) -> NCSN:
        return NCSN(sigmas=self.sigmas, num_filters=self.num_filters)


class MlpModel(NoiseLevels):
    """A multilayer perceptron, for vectors."""

    name: Literal["mlp"] = "mlp"
    num_features: PositiveInt = 128
    """The width of each hidden layer."""
    num_layers: PositiveInt = 3
    """How many hidden layers."""

    def build(self) -> MLP:
        return MLP(num_features=self.num_features, num_layers=self.num_layers)


def _model_name(settings: Any) -> str:
    return settings.get("name", "ncsn") if isinstance(settings, dict) else getattr(settings, "name", "")


Model = Annotated[
    Annotated[NcsnModel, Tag("ncsn")] | Annotated[MlpModel, Tag("mlp")],
    Discriminator(
        _model_name, custom_error_type="model", custom_error_message="its name must be 'ncsn' or 'mlp'"
    ),
]
"""The score network and the noise levels it is trained on."""


class Training(Settings):
    """The objective, the optimizer and what is written when."""

    num_steps: PositiveInt = 200_000
    batch_size: PositiveInt = 128
    """Examples a step over all devices and processes."""

    objective: Literal["denoising", "sliced"] = "denoising"
    """What is minimised at a random noise level: denoising score matching, or sliced score matching of the
    perturbed example, the official code's `ssm`."""
    projection: Projection = "gaussian"
    """Of the sliced objective: what its directions are drawn from."""
    num_projections: PositiveInt = 1
    """Of the sliced objective: how many directions an example is seen along."""
    power: float = 2.0
    """The exponent of the loss's weight λ(σ) = σ^power."""

    learning_rate: PositiveFloat = 1e-3
    schedule: Literal["constant", "cosine"] = "constant"
    """The learning rate after the warm-up: held, or decayed to 0 at the last step."""
    warmup_steps: NonNegativeInt = 0
    """Steps in which the learning rate grows linearly from 0."""
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    epsilon: PositiveFloat = 1e-8
    gradient_clip: PositiveFloat | None = None
    """The largest global norm of a gradient; longer ones are scaled down to it."""
    ema_rate: Fraction = 0.0
    """r in ema ← r·ema + (1−r)·params; 0 keeps no average."""

    log_every: PositiveInt = 100
    eval_every: PositiveInt = 5_000
    eval_examples: Annotated[
        PositiveInt, Field(validation_alias=AliasChoices("eval_examples", "eval_images"))
    ] = 1_000
    """How many test examples, from the first, the held-out loss averages over."""
    checkpoint_every: PositiveInt = 5_000
    keep_checkpoints: PositiveInt = 2
    preview_every: PositiveInt = 5_000
    preview_samples: PositiveInt = 64


class Sampling(Settings):
    """Annealed Langevin dynamics, Algorithm 1."""

    num_samples: PositiveInt = 64
    batch_size: PositiveInt = 64
    """Chains that run at once, over all local devices."""
    step_size: PositiveFloat = 2e-5
    """ε, the step size at the last level."""
    steps_per_scale: PositiveInt = 100
    """T."""
    temperature: NonNegativeFloat = 1.0
    denoise: bool = False
    """Whether to return E[x₀ | x] of the last state instead of the state."""
    seed: Seed = 0


class Config(Settings):
    """One run."""

    seed: Seed = 0
    """Decides the initial parameters, the order of the data and every draw of the training."""
    data: Data = Data()
    model: Model = NcsnModel()
    training: Training = Training()
    sampling: Sampling = Sampling()

    @model_validator(mode="after")
    def _warmup_ends(self) -> "Config":
        training = self.training
        if training.schedule == "cosine" and training.warmup_steps >= training.num_steps:
            raise ValueError(
                f"training.warmup_steps must be below num_steps={training.num_steps}, "
                f"found {training.warmup_steps}"
            )
        return self


def parse(settings: Any) -> Config:
    """The config of nested dictionaries.

    Args:
      settings: values by name; what is missing takes its default.

    Raises:
      UserError: if a name is unknown, or a value has the wrong type or range; it names each.
    """
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise UserError("; ".join(map(_one_line, error.errors()))) from None


def _one_line(error) -> str:
    group, *names = error["loc"] or [""]
    # Behind `model` comes which of the models it is, which is no setting's name.
    names = names[1:] if group == "model" else names
    place = ".".join(map(str, filter(None, ("config", group, *names))))
    found = error["input"]
    if error["type"] == "value_error":  # raised by a validator: its own words say what was found
        return f"{place}: {error['ctx']['error']}"
    message = f"{place}={found!r}: {error['msg'][0].lower()}{error['msg'][1:]}"
    return " ".join(message.split())


def load(path: Path) -> Config:
    """The config of a run, from its `config.json`.

    Raises:
      UserError: if the file isn't one.
    """
    try:
        return parse(json.loads(path.read_text()))
    except (UserError, ValueError) as error:
        raise UserError(f"{path} is not this program's config: {error}") from None


def changes(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """The settings that differ, by dotted name, as (old, new)."""
    before, after = flatten(old.model_dump()), flatten(new.model_dump())
    pairs = {name: (before.get(name), after.get(name)) for name in before | after}
    return {name: (a, b) for name, (a, b) in pairs.items() if a != b}


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, `{"model": {"num_filters": 64}}` as `{"model.num_filters": 64}`."""
    flat = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
