"""What a run is made of: the schema, the defaults and the checks of every setting.

The files in `configs/` say what they change; the defaults here are the paper's MNIST experiment.
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

from ncsn_jax.errors import UserError
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
from ncsn_jax.paths import absolute, expanded

Fraction = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""32 bits: jax would take a larger seed for another, smaller one."""
Place = Annotated[str, Field(min_length=1), AfterValidator(absolute)]
"""A file or a directory, found from any working directory; or a bucket."""


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Data(Settings):
    """What is learned: images, or points of the plane."""

    name: str = "mnist"
    """A dataset's name, one of `ncsn_jax.data.load`'s; `folder` is a directory of images of one's own."""
    data_dir: Place | None = None
    """Where prepared datasets lie; TFDS's own directory if None. Of `folder`, the directory of images. The
    points need none."""

    crop: PositiveInt | None = None
    """The side of the square that is cut out of the middle of every image first."""
    image_size: PositiveInt | None = None
    """The height and width that images are then resized to; None keeps their size. `folder` needs it."""
    fit: Literal["crop", "stretch", "pad"] = "crop"
    """How an image that is no square becomes one: its middle, all of it distorted, or with black borders."""

    channels: Literal[1, 3] = 3
    """Of `folder`: grey images or colours."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Of `folder`: the share of its files that are test images, which a hash of their names decides."""
    corrupt: Literal["error", "skip"] = "error"
    """Of `folder`: what a file that can't be decoded leads to, an error or a warning; both name it."""

    random_flip: bool = False
    """Whether training images are mirrored left to right with probability ½."""
    dequantization: Literal["uniform", "gaussian", "none"] = "uniform"
    """How a pixel k of n values becomes a number in [0, 1]: (k + u)/n with u ~ U[0, 1); k/(n−1) + 0.01 z with
    z ~ N(0, 1); or k/(n−1)."""
    transform: Literal["none", "rescale", "logit"] = "none"
    """What is done to [0, 1] before noise is added: nothing, x ↦ 2x − 1, or the logit."""

    @model_validator(mode="after")
    def _logits_exist(self) -> "Data":
        if self.dequantization == "gaussian" and self.transform == "logit":
            raise ValueError(
                "transform='logit' takes numbers in [0, 1], which dequantization='gaussian' leaves; "
                "accepted: 'uniform' or 'none'"
            )
        return self


def _schedule(value: Any) -> Any:
    """The setting `sigmas`; on the command line, levels are a string of numbers."""
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
    """The noise levels that a score network is trained on."""

    sigmas: Annotated[Literal["geometric", "auto"] | tuple[float, ...], BeforeValidator(_schedule)] = (
        "geometric"
    )
    """`geometric` makes them from the three settings below. `auto` chooses `sigma_begin` and `num_scales`
    from the data, once, and `sampling.step_size` if that is the default (NCSNv2's Techniques 1, 2 and 4); the
    run's config.json holds them then. Or the levels themselves, descending."""
    sigma_begin: PositiveFloat = 1.0
    sigma_end: PositiveFloat = 0.01
    num_scales: PositiveInt = 10

    @model_validator(mode="after")
    def _sigmas_descend(self) -> "NoiseLevels":
        if self.sigmas == "geometric":
            geometric_levels(self.sigma_begin, self.sigma_end, self.num_scales)
        return self

    @property
    def noise_levels(self) -> tuple[float, ...]:
        """σ₁ > … > σ_L; of `auto`, none before `ncsn_jax.suggest_noise.resolved` has chosen them."""
        if self.sigmas == "auto":
            raise ValueError("sigmas='auto': the noise levels aren't chosen yet")
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
    """What both networks for images have."""

    num_filters: Annotated[int, Field(ge=2)] = 64
    """Channels of the first stage; InstanceNorm++ takes a variance over them, so at least 2."""
    depth: Literal[4, 5, 6] = 4
    """The number of stages; images are halved `depth − 3` times."""
    act: Literal["elu", "relu", "leaky_relu", "swish"] = "elu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What features are computed in; parameters, statistics of normalisations and scores are float32."""


class NcsnModel(RefineNetModel):
    """The network of 2019, for images."""

    name: Literal["ncsn"] = "ncsn"
    norm: Literal["instance_norm_plus", "instance_norm"] = "instance_norm_plus"

    def build(self, *, rescaled: bool) -> NCSN:
        """The network; `rescaled` tells whether images already lie around 0."""
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
    """The network of 2020, for images."""

    name: Literal["ncsnv2"] = "ncsnv2"
    norm: Literal["instance_norm_plus", "variance_norm"] = "instance_norm_plus"

    def build(self, *, rescaled: bool) -> NCSNv2:
        """The network; `rescaled` tells whether images already lie around 0."""
        return NCSNv2(
            self.num_filters,
            self.depth,
            NCSNV2_NORMS[self.norm],
            ACTIVATIONS[self.act],
            rescaled,
            self.dtype,
        )


class MlpModel(NoiseLevels):
    """A multilayer perceptron, for vectors."""

    name: Literal["mlp"] = "mlp"
    num_features: PositiveInt = 128
    """The width of each hidden layer."""
    num_layers: PositiveInt = 3
    """How many hidden layers."""

    def build(self, *, rescaled: bool) -> MLP:
        """The network; it takes the data as they are."""
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
    noise: Literal["discrete", "continuous"] = "discrete"
    """Whether the noise level of an example is one of the model's, or any between the largest and the
    smallest, log-uniform. The second is for networks that take any σ."""

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
    """How many of the newest checkpoints are kept."""
    keep_best: NonNegativeInt = 0
    """How many more are kept for their held-out loss, which is then evaluated at every checkpoint."""
    checkpoint_dir: Place | None = None
    """Where checkpoints lie, such as `gs://bucket/run`: a place that all processes see. `checkpoints/` in the
    workdir if None."""
    max_failed_saves: NonNegativeInt = 100
    """How many saves in a row may fail, for a full disk or a vanished one, before training stops. What
    couldn't be saved is saved, at a later step, at the next line of the log."""
    max_skipped_steps: NonNegativeInt = 0
    """How many steps of a run may have a loss or a gradient that isn't finite, and are skipped, before
    training stops."""
    preview_every: PositiveInt = 5_000
    preview_samples: PositiveInt = 64


class Sampling(Settings):
    """The sampler. Where a setting names methods, the others don't read it."""

    num_samples: PositiveInt = 64
    batch_size: PositiveInt | None = None
    """Chains that run at once, over all local devices; as memory allows, up to 256 a device, if None."""
    seed: Seed = 0

    method: Literal["annealed", "consistent", "pc", "ode", "heun"] = "annealed"
    """Annealed Langevin dynamics, consistent annealed sampling, predictor-corrector, the probability flow by
    an adaptive solver, or Heun's method. The last three are for networks that take any σ."""
    temperature: NonNegativeFloat = 1.0
    """Of annealed, consistent, pc: the variance of the noise, relative to the algorithm's."""
    denoise: bool = False
    """Of annealed, consistent, pc, ode: whether to return E[x₀ | x] of the last state in its place."""
    num_levels: Annotated[int, Field(ge=2, le=100_000)] | None = None
    """Of consistent, pc, ode, heun: through how many noise levels they go from the model's largest to its
    smallest, geometrically (heun: by `rho`); as many as the model has if None. To ode they are stops on the
    way, for the animation: the solver chooses its own steps."""

    step_size: PositiveFloat = 2e-5
    """Of annealed: ε, the step size at the last level."""
    steps_per_scale: PositiveInt = 100
    """Of annealed: T."""
    eta: Annotated[float, Field(gt=0, le=1)] | None = None
    """Of consistent: η, the share of the noise that a step removes; the reverse diffusion's if None."""
    predictor: Literal["reverse_diffusion", "euler_maruyama"] = "reverse_diffusion"
    """Of pc: from each level to the next."""
    corrector_steps: NonNegativeInt = 1
    """Of pc: Langevin steps at each level."""
    snr: PositiveFloat = 0.16
    """Of pc: r, the signal-to-noise ratio of the corrector."""
    rho: PositiveFloat = 7.0
    """Of heun: ρ of its noise levels; the larger, the more geometric."""
    s_churn: NonNegativeFloat = 0.0
    """Of heun: S_churn; 0 is the deterministic algorithm."""
    s_min: NonNegativeFloat = 0.0
    """Of heun: S_min, the least σ at which noise is added."""
    s_max: PositiveFloat = 1e6
    """Of heun: S_max, the largest."""
    s_noise: NonNegativeFloat = 1.0
    """Of heun: S_noise, the standard deviation of the added noise, relative to the algorithm's."""
    rtol: PositiveFloat = 1e-5
    """Of ode: the relative tolerance."""
    atol: PositiveFloat = 1e-5
    """Of ode: the absolute tolerance, in the units of x."""


class Restoration(Settings):
    """What images are restored from; by the sampler above."""

    num_samples: PositiveInt = 4
    """How many restorations of each image; of interpolate through noise, how many rows."""
    given: Literal["originals", "observations"] = "originals"
    """Whether the images are originals, of which the observations are made here, or observations."""
    noise: NonNegativeFloat = 0.0
    """σ_y, the standard deviation of the noise in an observation, for images in [0, 1]."""
    mask: Annotated[str, Field(min_length=1), AfterValidator(expanded)] = "left"
    """Of inpaint: what is known: the `left`, `right`, `top` or `bottom` half; all but a square in the
    `centre`, half as high and wide; `random` pixels; or where a PNG file is white."""
    known: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Of inpaint: the share of random pixels that are known."""
    factor: Annotated[int, Field(ge=2)] = 2
    """Of superres: the side of the blocks that are averaged, in pixels."""
    through: Literal["noise", "latents"] = "noise"
    """Of interpolate: between samples, whose noise passes from one to the other (NCSNv2); or between images,
    through their latents of the probability flow."""
    num_interpolations: Annotated[int, Field(ge=2)] = 8
    """Of interpolate: the images of a row."""


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
    """The setting `metrics`; on the command line, their names are a string."""
    if value == "all":
        return value
    names = tuple(value.strip("()[] ").split(",")) if isinstance(value, str) else tuple(value)
    if names and all(name in METRICS for name in names):
        return names
    raise ValueError(f"found {str(value)[:80]!r}; accepted: 'all', or some of {','.join(METRICS)}")


class Evaluation(Settings):
    """What `--mode evaluate` measures."""

    metrics: Annotated[Literal["all"] | tuple[str, ...], BeforeValidator(_metrics)] = "all"
    """`frechet` and `kernel` distance, `coverage` (with precision, recall and density), `inception_score`,
    the histogram of `classes`, the nearest training `neighbours`, the `likelihood` and the `loss` of test
    examples; `all` are those that the data and the network allow."""
    num_samples: Annotated[int, Field(ge=2)] = 10_000
    """How many samples of each checkpoint are judged; it becomes part of the metrics' names."""
    features: Literal["auto", "classifier", "inception", "pixels"] = "auto"
    """Where images are compared: in the last layer of a small classifier, which is trained on the dataset's
    labels once; in that of Inception-v3 (the extra `fid`); or as they are. `auto` is the classifier where
    images have labels, and Inception elsewhere. Points are compared as they are."""
    inception_weights: Place | None = None
    """A file of Inception-v3's weights, as torch-fidelity has them; downloaded if None."""
    num_neighbours: PositiveInt = 5
    """Of coverage: k, the neighbour that decides how far a manifold reaches."""
    likelihood_examples: PositiveInt = 1_000
    """How many test examples, from the first, the likelihood averages over."""
    trace: Literal["auto", "exact", "hutchinson"] = "auto"
    """Of likelihood: how the score's divergence is found. `auto` is exact in up to 16 dimensions."""
    num_probes: PositiveInt = 1
    """Of likelihood: how many Rademacher vectors Hutchinson's estimate averages over."""
    loss_examples: PositiveInt = 1_000
    """How many test examples, from the first, the loss at each noise level averages over."""


class Config(Settings):
    """One run."""

    seed: Seed = 0
    """Decides the initial parameters, the order of the data and every draw of the training."""
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
                f"sampling.method={method!r} asks for scores at any σ, found model.name='ncsn', which embeds "
                "discrete levels; accepted: 'annealed' or 'consistent', or a model 'ncsnv2' or 'mlp'"
            )
        if self.model.name == "ncsn" and method == "consistent" and self.sampling.num_levels:
            raise ValueError(
                f"sampling.num_levels={self.sampling.num_levels}: model.name='ncsn' embeds discrete levels, "
                "and is sampled at those; accepted: None"
            )
        if self.model.sigmas != "auto" and len(self.model.noise_levels) < 2 and method != "annealed":
            raise ValueError(
                f"sampling.method={method!r} goes from noise level to noise level, found one; accepted: "
                "'annealed'"
            )
        return self

    @model_validator(mode="after")
    def _network_takes_the_noise(self) -> "Config":
        if self.training.noise == "continuous" and self.model.name == "ncsn":
            raise ValueError(
                "training.noise='continuous' takes a network for any σ, found model.name='ncsn', which "
                "embeds discrete levels; accepted: 'ncsnv2' or 'mlp'"
            )
        return self

    def network(self) -> nn.Module:
        """The score network, untrained."""
        return self.model.build(rescaled=self.data.transform != "none")


def parse(settings: Any) -> Config:
    """The config of nested dictionaries.

    Args:
      settings: values by name, as dictionaries or a `ConfigDict`; what is missing takes its default.

    Raises:
      UserError: if a name is unknown, or a value has the wrong type or range; it names each.
    """
    if isinstance(settings, ml_collections.ConfigDict):
        settings = settings.to_dict()
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
    except (UserError, ValueError, RecursionError) as error:
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
