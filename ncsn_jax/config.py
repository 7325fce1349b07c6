"""Settings of a run: their schema, defaults and checks.

The defaults are the paper's MNIST experiment; each file in `configs/` changes some of them.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import ml_collections
import numpy as np
from flax import linen as nn
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
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

from ncsn_jax.losses import Projection
from ncsn_jax.models import MLP, NCSN, NCSNv2
from ncsn_jax.models.layers import (
    ConditionalInstanceNorm,
    ConditionalInstanceNormPlus,
    InstanceNormPlus,
    VarianceNorm,
    elu,
    leaky_relu,
    relu,
    swish,
)
from ncsn_jax.noise import geometric_levels
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.runtime.paths import absolute, expanded

Fraction = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A 32-bit seed: jax would truncate a larger one."""
Place = Annotated[str, Field(min_length=1), AfterValidator(absolute)]
"""An absolute path of a file or a directory, or the URL of a bucket."""


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Data(Settings):
    """Dataset, images or points of the plane, and its preprocessing."""

    name: str = "mnist"
    """Name of a dataset that `ncsn_jax.data.load` knows; `folder` is your own directory of images."""
    data_dir: Place | None = None
    """Directory of the prepared datasets; None is TFDS's default. For `folder`, the directory of images.
    Point sets don't read it."""

    crop: PositiveInt | None = None
    """Side of the square that is cut from the centre of every image before resizing, in pixels; None cuts
    nothing."""
    image_size: PositiveInt | None = None
    """Height and width of the resized images, in pixels; None keeps their size. Required by `folder`."""
    fit: Literal["crop", "stretch", "pad"] = "crop"
    """Conversion of images that aren't square: `crop` to the centre, `stretch`, or `pad` with black."""

    channels: Literal[1, 3] = 3
    """Channels of the images, 1 (grey) or 3 (colour); read by `folder`."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Fraction of the files that are test images, chosen by a hash of their names; read by `folder`."""
    corrupt: Literal["error", "skip"] = "error"
    """Treatment of a file that can't be decoded: `error` stops, `skip` warns and leaves the file out. Both
    name the file. Read by `folder`."""

    random_flip: bool = False
    """Whether training images are flipped left to right with probability ½."""
    dequantization: Literal["uniform", "gaussian", "none"] = "uniform"
    """Map from a pixel k of n values to a number: `uniform` (k + u)/n with u ~ U[0, 1); `gaussian`
    k/(n−1) + 0.01 z with z ~ N(0, 1); `none` k/(n−1)."""
    transform: Literal["none", "rescale", "logit"] = "none"
    """Map from [0, 1] to the network's space: `none` the identity, `rescale` x ↦ 2x − 1, or the `logit`."""

    @model_validator(mode="after")
    def _logits_exist(self) -> "Data":
        if self.dequantization == "gaussian" and self.transform == "logit":
            raise ValueError(
                "transform='logit' needs numbers in [0, 1], but dequantization='gaussian' leaves that range; "
                "accepted: 'uniform' or 'none'"
            )
        return self


def _schedule(value: Any) -> Any:
    """Return the setting `sigmas`; levels from the command line are a string of numbers."""
    if value in ("geometric", "auto"):
        return value
    try:
        levels = value.strip("()[] ").split(",") if isinstance(value, str) else list(value)
        levels = tuple(float(level) for level in levels)
    except (TypeError, ValueError):
        levels = ()
    with np.errstate(over="ignore"):
        single = np.asarray(levels, np.float32)
    if levels and np.all(single > 0) and np.all(np.diff(single) < 0) and np.isfinite(single).all():
        return levels
    raise ValueError(
        f"found {str(value)[:80]!r}; accepted: 'geometric', 'auto', or positive levels that descend in "
        "single precision, such as 1.0,0.5,0.1"
    )


class NoiseLevels(Settings):
    """Noise levels that the score network is trained on."""

    sigmas: Annotated[Literal["geometric", "auto"] | tuple[float, ...], BeforeValidator(_schedule)] = (
        "geometric"
    )
    """The levels themselves, descending; or `geometric`, made from the three settings below; or `auto`:
    `sigma_begin` and `num_scales` are chosen from the data when the run begins, and so is
    `sampling.step_size` if it has its default (NCSNv2's Techniques 1, 2 and 4). The run's config.json then
    holds the chosen values."""
    sigma_begin: PositiveFloat = 1.0
    """σ₁, the largest noise level."""
    sigma_end: PositiveFloat = 0.01
    """σ_L, the smallest noise level."""
    num_scales: PositiveInt = 10
    """L, the number of noise levels."""

    @model_validator(mode="after")
    def _sigmas_descend(self) -> "NoiseLevels":
        if self.sigmas == "geometric":
            geometric_levels(self.sigma_begin, self.sigma_end, self.num_scales)
        return self

    @property
    def noise_levels(self) -> tuple[float, ...]:
        """σ₁ > … > σ_L. With `auto`, `ncsn_jax.suggest_noise.resolved` has to choose them first."""
        if self.sigmas == "auto":
            raise ValueError("sigmas='auto': the levels aren't chosen yet; call suggest_noise.resolved first")
        if not isinstance(self.sigmas, str):
            return self.sigmas
        return tuple(geometric_levels(self.sigma_begin, self.sigma_end, self.num_scales).tolist())


ACTIVATIONS = {"elu": elu, "relu": relu, "leaky_relu": leaky_relu, "swish": swish}


NCSN_NORMS = {
    "instance_norm_plus": ConditionalInstanceNormPlus,
    "instance_norm": ConditionalInstanceNorm,
}
NCSNV2_NORMS = {"instance_norm_plus": InstanceNormPlus, "variance_norm": VarianceNorm}


class RefineNetModel(NoiseLevels):
    """Settings that both networks for images share."""

    num_filters: Annotated[int, Field(ge=2)] = 64
    """F, the channels of the first stage; at least 2, because InstanceNorm++ takes a variance over them."""
    depth: Literal[4, 5, 6] = 4
    """Number of stages; images are halved `depth − 3` times."""
    act: Literal["elu", "relu", "leaky_relu", "swish"] = "elu"
    """Activation function."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Floating-point type of the features; parameters, normalisation statistics and scores are float32."""


class NcsnModel(RefineNetModel):
    """NCSN (2019), a network for images."""

    name: Literal["ncsn"] = "ncsn"
    norm: Literal["instance_norm_plus", "instance_norm"] = "instance_norm_plus"
    """Normalisation layer, conditional on the noise level."""

    def build(self, *, rescaled: bool) -> NCSN:
        """Return the network; `rescaled` tells whether images are already centred at 0."""
        return NCSN(
            self.noise_levels,
            self.num_filters,
            self.depth,
            NCSN_NORMS[self.norm],
            ACTIVATIONS[self.act],
            rescaled,
            self.dtype,
        )


class Ncsnv2Model(RefineNetModel):
    """NCSNv2 (2020), a network for images."""

    name: Literal["ncsnv2"] = "ncsnv2"
    norm: Literal["instance_norm_plus", "variance_norm"] = "instance_norm_plus"
    """Normalisation layer."""

    def build(self, *, rescaled: bool) -> NCSNv2:
        """Return the network; `rescaled` tells whether images are already centred at 0."""
        return NCSNv2(
            self.num_filters,
            self.depth,
            NCSNV2_NORMS[self.norm],
            ACTIVATIONS[self.act],
            rescaled,
            self.dtype,
        )


class MlpModel(NoiseLevels):
    """Multilayer perceptron, a network for vectors."""

    name: Literal["mlp"] = "mlp"
    num_features: PositiveInt = 128
    """Width of each hidden layer."""
    num_layers: PositiveInt = 3
    """Number of hidden layers."""

    def build(self, *, rescaled: bool) -> MLP:
        """Return the network; it ignores `rescaled`."""
        return MLP(num_features=self.num_features, num_layers=self.num_layers)


def _model_name(settings: Any) -> str:
    return settings.get("name", "ncsn") if isinstance(settings, dict) else getattr(settings, "name", "")


Model = Annotated[
    Annotated[NcsnModel, Tag("ncsn")]
    | Annotated[Ncsnv2Model, Tag("ncsnv2")]
    | Annotated[MlpModel, Tag("mlp")],
    Discriminator(
        _model_name,
        custom_error_type="model",
        custom_error_message="its name must be 'ncsn', 'ncsnv2' or 'mlp'",
    ),
]
"""Score network and the noise levels that it is trained on."""


class Training(Settings):
    """Objective, optimizer, logging and checkpoints."""

    num_steps: PositiveInt = 200_000
    """Number of training steps."""
    batch_size: PositiveInt = 128
    """Examples per step, over all devices and processes."""

    objective: Literal["denoising", "sliced"] = "denoising"
    """Training loss at a random noise level: denoising score matching, or sliced score matching of the
    perturbed example (`ssm` in the official code)."""
    projection: Projection = "gaussian"
    """Distribution of the projection directions; read by `objective=sliced`."""
    num_projections: PositiveInt = 1
    """Projection directions per example; read by `objective=sliced`."""
    power: float = 2.0
    """Exponent of the loss weight λ(σ) = σ^power."""
    noise: Literal["discrete", "continuous"] = "discrete"
    """Distribution of an example's noise level: `discrete`, uniform over the model's levels, or `continuous`,
    log-uniform between the smallest and the largest, for networks that take any σ."""

    learning_rate: PositiveFloat = 1e-3
    """Adam's learning rate after the warm-up."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or a cosine decay to 0 at the last step."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate grows linearly from 0."""
    beta1: Fraction = 0.9
    """Adam's decay rate of the gradient's mean."""
    beta2: Fraction = 0.999
    """Adam's decay rate of the squared gradient's mean."""
    epsilon: PositiveFloat = 1e-8
    """Adam's ε, which is added to the denominator."""
    gradient_clip: PositiveFloat | None = None
    """Largest global norm of a gradient; larger gradients are scaled down to it. None doesn't clip."""
    ema_rate: Fraction = 0.0
    """Rate r of the moving average ema ← r·ema + (1−r)·params; 0 keeps no average."""

    log_every: PositiveInt = 100
    """Steps between lines of the log."""
    eval_every: PositiveInt = 5_000
    """Steps between evaluations of the held-out loss."""
    eval_examples: Annotated[
        PositiveInt, Field(validation_alias=AliasChoices("eval_examples", "eval_images"))
    ] = 1_000
    """Test examples, from the first, that the held-out loss averages over."""
    checkpoint_every: PositiveInt = 5_000
    """Steps between checkpoints."""
    keep_checkpoints: PositiveInt = 2
    """Number of newest checkpoints that are kept."""
    keep_best: NonNegativeInt = 0
    """Number of checkpoints with the lowest held-out loss that are kept as well; if positive, the loss is
    evaluated at every checkpoint."""
    checkpoint_dir: Place | None = None
    """Directory or bucket of the checkpoints, such as `gs://bucket/run`, that all processes can reach; None
    is `checkpoints/` in the workdir."""
    max_failed_saves: NonNegativeInt = 100
    """Consecutive saves that may fail, such as on a full disk, before training stops. A failed save is
    retried at the next line of the log, with the state of that step."""
    max_skipped_steps: NonNegativeInt = 0
    """Number of steps that a run may skip, because the loss or the gradient isn't finite, before training
    stops."""
    preview_every: PositiveInt = 5_000
    """Steps between pictures of samples."""
    preview_samples: PositiveInt = 64
    """Samples in each of these pictures."""


class Sampling(Settings):
    """Sampling method and its parameters. A setting that is "read by" some methods is ignored by the rest."""

    num_samples: PositiveInt = 64
    """Number of samples that `--mode sample` and the end of training draw."""
    batch_size: PositiveInt | None = None
    """Chains that run at once, over all local devices; None is as many as memory allows, up to 256 per
    device."""
    seed: Seed = 0
    """Seed of the samples and restorations."""

    method: Literal["annealed", "consistent", "pc", "ode", "heun"] = "annealed"
    """Annealed Langevin dynamics, consistent annealed sampling, predictor-corrector, the probability-flow ODE
    with an adaptive solver, or Heun's method. The last three need a network that takes any σ."""
    temperature: NonNegativeFloat = 1.0
    """Variance of the noise, relative to the algorithm's; read by annealed, consistent, pc."""
    denoise: bool = False
    """Whether to return E[x₀ | x] instead of the last state x; read by annealed, consistent, pc, ode."""
    num_levels: Annotated[int, Field(ge=2, le=100_000)] | None = None
    """Number of noise levels from the model's largest to its smallest, spaced geometrically (heun: by `rho`);
    None is the model's number. Read by consistent, pc, ode, heun. For ode, the solver
    stops at the levels, for the animation, and chooses its own steps between them."""

    step_size: PositiveFloat = 2e-5
    """ε, the step size at the last level; read by annealed."""
    steps_per_scale: PositiveInt = 100
    """T, the steps at each level; read by annealed."""
    eta: Annotated[float, Field(gt=0, le=1)] | None = None
    """η, the fraction of the noise that a step removes; None is the fraction of reverse diffusion. Read by
    consistent."""
    predictor: Literal["reverse_diffusion", "euler_maruyama"] = "reverse_diffusion"
    """Predictor, the step from each level to the next; read by pc."""
    corrector_steps: NonNegativeInt = 1
    """Langevin steps at each level; read by pc."""
    snr: PositiveFloat = 0.16
    """r, the signal-to-noise ratio of the corrector; read by pc."""
    rho: PositiveFloat = 7.0
    """ρ of the noise levels, which become geometric as it grows; read by heun."""
    s_churn: NonNegativeFloat = 0.0
    """S_churn, the amount of added noise; 0 is the deterministic algorithm. Read by heun."""
    s_min: NonNegativeFloat = 0.0
    """S_min, the smallest σ at which noise is added; read by heun."""
    s_max: PositiveFloat = 1e6
    """S_max, the largest σ at which noise is added; read by heun."""
    s_noise: NonNegativeFloat = 1.0
    """S_noise, the standard deviation of the added noise, relative to the algorithm's; read by heun."""
    rtol: PositiveFloat = 1e-5
    """Relative tolerance of the solver; read by ode and by the likelihood."""
    atol: PositiveFloat = 1e-5
    """Absolute tolerance of the solver, in the units of x; read by ode and by the likelihood."""


class Restoration(Settings):
    """Observations that images are restored from, and interpolation; `sampling` holds the sampler."""

    num_samples: PositiveInt = 4
    """Number of restorations of each image; for interpolation through noise, number of rows."""
    given: Literal["originals", "observations"] = "originals"
    """Kind of the given images: originals, from which observations are made here, or observations."""
    noise: NonNegativeFloat = 0.0
    """σ_y, the standard deviation of the noise in an observation, in the units of images in [0, 1]."""
    mask: Annotated[str, Field(min_length=1), AfterValidator(expanded)] = "left"
    """Known pixels: the `left`, `right`, `top` or `bottom` half; all except a square in the `centre`, half as
    high and wide; `random` pixels; or the white pixels of a PNG file. Read by inpaint."""
    known: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Fraction of known pixels with the mask `random`; read by inpaint."""
    factor: Annotated[int, Field(ge=2)] = 2
    """Side of the blocks that are averaged, in pixels; read by superres."""
    through: Literal["noise", "latents"] = "noise"
    """Path of the interpolation: `noise`, between samples whose injected noise is interpolated (NCSNv2), or
    `latents`, between images through their latents of the probability flow. Read by interpolate."""
    num_interpolations: Annotated[int, Field(ge=2)] = 8
    """Number of images in a row; read by interpolate."""


METRICS = (
    "frechet",
    "kernel",
    "coverage",
    "inception_score",
    "classes",
    "neighbours",
    "likelihood",
    "loss",
)


def _metrics(value: Any) -> Any:
    """Return the setting `metrics`; names from the command line are one string."""
    if value == "all":
        return value
    names = value.strip("()[] ").split(",") if isinstance(value, str) else value
    names = tuple(names) if isinstance(names, list | tuple) else ()
    if names and all(name in METRICS for name in names):
        return names
    raise ValueError(f"found {str(value)[:80]!r}; accepted: 'all', or some of {','.join(METRICS)}")


class Evaluation(Settings):
    """Metrics of `--mode evaluate`."""

    metrics: Annotated[Literal["all"] | tuple[str, ...], BeforeValidator(_metrics)] = "all"
    """Metrics to compute: `frechet` and `kernel` distance, `coverage` (with precision, recall and density),
    `inception_score`, the histogram of `classes`, the nearest training `neighbours`, the `likelihood` and the
    `loss` of test examples; `all` is every metric that the data and the network allow."""
    num_samples: Annotated[int, Field(ge=2)] = 10_000
    """Number of samples per checkpoint; the metrics' names contain this number."""
    features: Literal["auto", "classifier", "inception", "pixels"] = "auto"
    """Features in which images are compared: the last layer of a small classifier, trained once on the
    dataset's labels; the last layer of Inception-v3 (needs the extra `fid`); or the pixels. `auto` is the
    classifier if images have labels, otherwise Inception if it is installed, otherwise the pixels. Points are
    compared by their coordinates."""
    inception_weights: Place | None = None
    """File of Inception-v3's weights in torch-fidelity's format; None downloads it."""
    num_neighbours: PositiveInt = 5
    """k of the k-nearest-neighbour radii; read by coverage."""
    likelihood_examples: PositiveInt = 1_000
    """Test examples, from the first, that the likelihood averages over."""
    trace: Literal["auto", "exact", "hutchinson"] = "auto"
    """Computation of the score's divergence: exact, or Hutchinson's estimate; `auto` is exact in up to 16
    dimensions. Read by likelihood."""
    num_probes: PositiveInt = 1
    """Rademacher vectors that Hutchinson's estimate averages over; read by likelihood."""
    loss_examples: PositiveInt = 1_000
    """Test examples, from the first, that the loss at each noise level averages over."""


class Config(Settings):
    """Settings of one run."""

    seed: Seed = 0
    """Seed of the initial parameters, the order of the data and every random draw in training."""
    data: Data = Data()
    model: Model = NcsnModel()
    training: Training = Training()
    sampling: Sampling = Sampling()
    restoration: Restoration = Restoration()
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _sampler_fits_the_network(self) -> "Config":
        method = self.sampling.method
        if self.model.name == "ncsn" and method in ("pc", "ode", "heun"):
            raise ValueError(
                f"sampling.method={method!r} needs scores at any σ, found model.name='ncsn', which embeds "
                "discrete levels; accepted: 'annealed' or 'consistent', or a model 'ncsnv2' or 'mlp'"
            )
        if self.model.name == "ncsn" and method == "consistent" and self.sampling.num_levels:
            raise ValueError(
                f"sampling.num_levels={self.sampling.num_levels}: model.name='ncsn' embeds discrete levels "
                "and can be sampled only at these; accepted: None"
            )
        if self.model.sigmas != "auto" and len(self.model.noise_levels) < 2 and method != "annealed":
            raise ValueError(
                f"sampling.method={method!r} needs at least two noise levels, found one; accepted: 'annealed'"
            )
        return self

    @model_validator(mode="after")
    def _network_takes_the_noise(self) -> "Config":
        if self.training.noise == "continuous" and self.model.name == "ncsn":
            raise ValueError(
                "training.noise='continuous' needs a network for any σ, found model.name='ncsn', which "
                "embeds discrete levels; accepted: 'ncsnv2' or 'mlp'"
            )
        return self

    def network(self) -> nn.Module:
        """Return the untrained score network."""
        return self.model.build(rescaled=self.data.transform != "none")


def parse(settings: Any) -> Config:
    """Return the config with the values of nested dictionaries.

    Args:
      settings: values by name, as dictionaries or a `ConfigDict`; missing ones take their defaults.

    Raises:
      UserError: if a name is unknown, or a value has the wrong type or range; the message lists all of them.
    """
    if isinstance(settings, ml_collections.ConfigDict):
        settings = settings.to_dict()
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise UserError("; ".join(map(_one_line, error.errors()))) from None


def _one_line(error) -> str:
    group, *names = error["loc"] or [""]
    # pydantic puts the tag of the union after `model`; it isn't a setting's name.
    names = names[1:] if group == "model" else names
    place = ".".join(map(str, filter(None, ("config", group, *names))))
    found = error["input"]
    if error["type"] == "value_error":  # raised by a validator, whose message includes the value found
        return f"{place}: {error['ctx']['error']}"
    message = f"{place}={found!r}: {error['msg'][0].lower()}{error['msg'][1:]}"
    return " ".join(message.split())


def load(path: Path) -> Config:
    """Return the config in a run's `config.json`.

    Raises:
      UserError: if the file isn't a config of this program.
    """
    try:
        return parse(json.loads(path.read_text("utf-8")))
    except (UserError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not this program's config: {error}") from None


def changes(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ, by dotted name, as (old, new)."""
    before, after = flatten(old.model_dump()), flatten(new.model_dump())
    pairs = {name: (before.get(name), after.get(name)) for name in before | after}
    return {name: (a, b) for name, (a, b) in pairs.items() if a != b}


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries: `{"model": {"num_filters": 64}}` to `{"model.num_filters": 64}`."""
    flat = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
