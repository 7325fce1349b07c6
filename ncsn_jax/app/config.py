"""Settings of a run: their schema, defaults and checks.

The defaults are the paper's MNIST experiment; each file in `configs/` changes some of them.
"""

import math
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

import ml_collections
import numpy as np
from pydantic import (
    AfterValidator,
    BeforeValidator,
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

from ncsn_jax.data.settings import Data
from ncsn_jax.evaluation.settings import Evaluation
from ncsn_jax.losses import Projection
from ncsn_jax.models import MLP, NCSN, NCSNpp, NCSNv2, VPScore
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
from ncsn_jax.runtime.paths import expanded
from ncsn_jax.runtime.settings import FROM_JSON, Fraction, Seed, StrictSettings, one_line
from ncsn_jax.training.power_averages import LONGEST
from ncsn_jax.training.settings import RunSettings

IMPORT_PATH = r"^[\w.]+:[\w.]+$"
"""Pattern of an import path, `package.module:name`."""


def _psf(value: str) -> str:
    return value if value.startswith("gaussian:") else expanded(value)


def _word_or_path(*words: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        if value in words or re.match(IMPORT_PATH, value):
            return value
        raise ValueError(
            f"found {value[:80]!r}; accepted: {', '.join(map(repr, words))}, or an import path such as "
            "'package.module:name'"
        )

    return check


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


def _std(value: Any) -> Any:
    """Return the setting `data_std`; a number from the command line is a string."""
    try:
        std = value if value == "auto" else float(value)
    except (TypeError, ValueError):
        std = 0.0
    if std == "auto" or 0 < std < math.inf:
        return std
    raise ValueError(f"found {str(value)[:80]!r}; accepted: 'auto' or a positive number")


def _interval(value: Any) -> Any:
    """Return the setting `guidance_interval`; numbers from the command line are one string."""
    if value is None:
        return value
    try:
        low, high = value.strip("()[] ").split(",") if isinstance(value, str) else value
        if 0 <= float(low) < float(high) < math.inf:
            return float(low), float(high)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"found {str(value)[:80]!r}; accepted: two noise levels that ascend, such as 0.1,2.0")


class NoiseLevels(StrictSettings):
    """Noise levels of the score network, and its preconditioning."""

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
    preconditioning: Literal["none", "karras"] = "none"
    """`karras` makes the network the F of `Preconditioned`; it needs a network for any σ that doesn't divide
    by it (`scale_by_sigma=False`)."""
    data_std: Annotated[Literal["auto"] | float, BeforeValidator(_std)] = "auto"
    """σ_d, the standard deviation of the data's elements, in the units of the network's x; `auto` measures
    the training examples when the run begins, and config.json then holds the number. Read by
    `preconditioning=karras` and `training.weighting=karras`."""

    @property
    def is_discrete(self) -> bool:
        """Whether the network embeds its noise levels, and takes no other."""
        return False

    @model_validator(mode="after")
    def _sigmas_descend(self) -> "NoiseLevels":
        if self.sigmas == "geometric":
            geometric_levels(self.sigma_begin, self.sigma_end, self.num_scales)
        return self

    @model_validator(mode="after")
    def _can_be_preconditioned(self) -> "NoiseLevels":
        if self.preconditioning == "none":
            return self
        if getattr(self, "scale_by_sigma", False):
            raise ValueError(
                "preconditioning='karras' would divide by the noise level twice, found scale_by_sigma=True; "
                "accepted: False"
            )
        if self.is_discrete or isinstance(self, Ncsnv2Model) or getattr(self, "process", "ve") != "ve":
            raise ValueError(
                "preconditioning='karras' needs a network that takes any label, found one that embeds levels "
                "or divides by σ; accepted: 'none', or 'ncsnpp' of embedding='fourier', 'mlp', or your own"
            )
        return self

    @property
    def measured_std(self) -> float:
        """σ_d. With `auto`, `ncsn_jax.app.from_data.resolved` has to measure it first."""
        if self.data_std == "auto":
            raise ValueError("data_std='auto': it isn't measured yet; call from_data.resolved first")
        return self.data_std

    @property
    def noise_levels(self) -> tuple[float, ...]:
        """σ₁ > … > σ_L. With `auto`, `ncsn_jax.app.from_data.resolved` has to choose them first."""
        if self.sigmas == "auto":
            raise ValueError("sigmas='auto': the levels aren't chosen yet; call from_data.resolved first")
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

    @property
    def is_discrete(self) -> bool:
        """Whether the network embeds its noise levels."""
        return True

    def build(self, *, rescaled: bool, conditions: Any = None) -> NCSN:
        """Return the network; `rescaled` tells whether images are already centred at 0."""
        return NCSN(
            self.noise_levels,
            self.num_filters,
            self.depth,
            NCSN_NORMS[self.norm],
            ACTIVATIONS[self.act],
            rescaled,
            self.dtype,
            conditions,
        )


class Ncsnv2Model(RefineNetModel):
    """NCSNv2 (2020), a network for images."""

    name: Literal["ncsnv2"] = "ncsnv2"
    norm: Literal["instance_norm_plus", "variance_norm"] = "instance_norm_plus"
    """Normalisation layer."""

    def build(self, *, rescaled: bool, conditions: None = None) -> NCSNv2:
        """Return the network; `rescaled` tells whether images are already centred at 0."""
        return NCSNv2(
            self.num_filters,
            self.depth,
            NCSNV2_NORMS[self.norm],
            ACTIVATIONS[self.act],
            rescaled,
            self.dtype,
        )


class NcsnppModel(NoiseLevels):
    """NCSN++ or DDPM++ (2021), a network for images; names in brackets are the release's."""

    name: Literal["ncsnpp"] = "ncsnpp"
    num_filters: PositiveInt = 128
    """F, the channels of the first convolution (nf)."""
    multipliers: Annotated[tuple[PositiveInt, ...], FROM_JSON, Field(min_length=1)] = (1, 2, 2, 2)
    """Channels of each level, in multiples of F (ch_mult); each level halves the image."""
    num_res_blocks: PositiveInt = 4
    """Residual blocks of a level."""
    attention_resolutions: Annotated[tuple[PositiveInt, ...], FROM_JSON] = (16,)
    """Sizes image_size/2ⁱ of the levels i that have attention (attn_resolutions)."""
    image_size: PositiveInt = 32
    """Size of the images that `attention_resolutions` refers to; with patches, the number of patches."""
    middle_attention: bool = True
    """Whether the middle of the network has attention; its memory grows with the square of the number of
    pixels there."""
    patch_size: PositiveInt = 1
    """P: each patch of P×P pixels is one pixel of the network, with P² times the channels."""
    block: Literal["biggan", "ddpm"] = "biggan"
    """Residual blocks (resblock_type)."""
    fir: bool = True
    """Whether images are resampled by a filter."""
    fir_kernel: Annotated[tuple[float, ...], FROM_JSON, Field(min_length=2)] = (1.0, 3.0, 3.0, 1.0)
    """Filter of an axis; read if `fir`."""
    resample_with_conv: bool = True
    """Whether `ddpm` levels are resampled with a convolution (resamp_with_conv)."""
    skip_rescale: bool = True
    """Whether sums of two branches are divided by √2."""
    progressive: Literal["none", "output_skip", "residual"] = "none"
    """Pyramid of outputs."""
    progressive_input: Literal["none", "input_skip", "residual"] = "residual"
    """Pyramid of inputs."""
    combine: Literal["sum", "cat"] = "sum"
    """Connection of the image and the features; read by `input_skip` (progressive_combine)."""
    embedding: Literal["fourier", "positional"] = "fourier"
    """Embedding of the noise level: `fourier` of any σ, or `positional` of the level's number
    (embedding_type)."""
    fourier_scale: PositiveFloat = 16.0
    """Standard deviation of the Fourier frequencies."""
    scale_by_sigma: bool = True
    """Whether the output is divided by σ; networks of `process=vp` or `subvp` never divide it."""
    init_scale: NonNegativeFloat = 0.0
    """Scale of the initial weights that end a branch; 0 stands for 1e-10."""
    num_groups: PositiveInt | None = None
    """Groups of the normalisations; None is a fourth of the channels, at most 32."""
    dropout: Fraction = 0.0
    """Rate of dropout in training."""
    act: Literal["elu", "relu", "leaky_relu", "swish"] = "swish"
    """Activation function (nonlinearity)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Floating-point type of the features; parameters, normalisation statistics and scores are float32."""
    process: Literal["ve", "vp", "subvp"] = "ve"
    """Inputs of the network: `ve` takes images with added noise; `vp` and `subvp` take the process's time and
    scaled images around [−1, 1], and `VPScore` makes such a network a score. Training is by noise levels."""
    beta_min: PositiveFloat = 0.1
    """β₀ of `vp` and `subvp`."""
    beta_max: PositiveFloat = 20.0
    """β₁ of `vp` and `subvp`."""

    @model_validator(mode="after")
    def _settings_fit(self) -> "NcsnppModel":
        if self.process != "ve" and self.embedding == "fourier":
            raise ValueError(
                f"process={self.process!r}: its networks embed a label, found embedding='fourier'; accepted: "
                "'positional'"
            )
        if self.beta_min > self.beta_max:
            raise ValueError(
                f"beta_min={self.beta_min}: more than beta_max={self.beta_max}; accepted: at most that"
            )
        if not sum(self.fir_kernel) > 0:
            raise ValueError(f"fir_kernel={self.fir_kernel}: accepted: numbers with a positive sum")
        return self

    @property
    def is_discrete(self) -> bool:
        """Whether the network embeds its noise levels."""
        return self.process == "ve" and self.embedding == "positional"

    def build(self, *, rescaled: bool, conditions: Any = None) -> NCSNpp | VPScore:
        """Return the network; `rescaled` tells whether images are already centred at 0."""
        shared = NcsnppModel.model_fields.keys() & NCSNpp.__dataclass_fields__.keys() - {"name", "sigmas"}
        fields: dict[str, Any] = {name: getattr(self, name) for name in shared}
        fields |= {"act": ACTIVATIONS[self.act], "conditions": conditions}
        if self.process == "ve":
            sigmas = self.noise_levels if self.is_discrete else None
            return NCSNpp(**fields, sigmas=sigmas, rescaled=rescaled)
        fields |= {"scale_by_sigma": False, "rescaled": True}
        return VPScore(NCSNpp(**fields), self.process, self.beta_min, self.beta_max, rescaled)


class MlpModel(NoiseLevels):
    """Multilayer perceptron, a network for vectors."""

    name: Literal["mlp"] = "mlp"
    num_features: PositiveInt = 128
    """Width of each hidden layer."""
    num_layers: PositiveInt = 3
    """Number of hidden layers."""
    scale_by_sigma: bool = True
    """Whether the output is divided by σ."""

    def build(self, *, rescaled: bool, conditions: Any = None) -> MLP:
        """Return the network; it ignores `rescaled`."""
        own: dict[str, Any] = {"scale_by_sigma": self.scale_by_sigma, "conditions": conditions}
        return MLP(self.num_features, self.num_layers, **own)


class OwnModel(NoiseLevels):
    """A network of your own: a flax module for x and σ."""

    name: Annotated[str, Field(pattern=IMPORT_PATH)]
    """Import path of the module's class, such as `my_package.nets:MyNet`."""
    fields: dict[str, Any] = Field(default_factory=dict)
    """Fields of the module, as JSON."""


def _model_name(settings: Any) -> str:
    name = settings.get("name", "ncsn") if isinstance(settings, dict) else getattr(settings, "name", "")
    return "own" if isinstance(name, str) and ":" in name else name


Model = Annotated[
    Annotated[NcsnModel, Tag("ncsn")]
    | Annotated[Ncsnv2Model, Tag("ncsnv2")]
    | Annotated[NcsnppModel, Tag("ncsnpp")]
    | Annotated[MlpModel, Tag("mlp")]
    | Annotated[OwnModel, Tag("own")],
    Discriminator(
        _model_name,
        custom_error_type="model",
        custom_error_message="its name must be 'ncsn', 'ncsnv2', 'ncsnpp', 'mlp', or an import path "
        "such as 'package.module:name'",
    ),
]
"""Score network and the noise levels that it is trained on."""


class Training(RunSettings):
    """Objective, optimizer, and the settings that every run has."""

    num_steps: PositiveInt = 200_000
    """Number of training steps."""

    objective: Annotated[str, AfterValidator(_word_or_path("denoising", "sliced"))] = "denoising"
    """Training loss at a random noise level: `denoising` score matching, or `sliced` score matching of the
    perturbed example (`ssm` in the official code); or the import path of your own, a function of (key,
    score_fn, x) to a scalar."""
    projection: Projection = "gaussian"
    """Distribution of the projection directions; read by `objective=sliced`."""
    num_projections: PositiveInt = 1
    """Projection directions per example; read by `objective=sliced`."""
    power: float = 2.0
    """Exponent of the loss weight λ(σ) = σ^power; read by `weighting=power`."""
    reduce_mean: bool = False
    """Whether squares are averaged over an example's elements, instead of ½ of their sum; read by
    `objective=denoising`."""
    likelihood_weighting: bool = False
    """Whether the loss bounds the negative log-likelihood, 2 log(σ₁/σ_L) times the loss with `power=2`; read
    by `objective=denoising`."""
    weighting: Literal["power", "karras"] = "power"
    """Loss weight: `power`, σ^power, or `karras`, σ² (1 + σ²/σ_d²), which gives the output of a network with
    `model.preconditioning=karras` the weight 1. Read by `objective=denoising`."""
    noise: Literal["discrete", "continuous", "log_normal"] = "discrete"
    """Distribution of an example's noise level: `discrete`, uniform over the model's levels; or, for networks
    that take any σ, `continuous`, log-uniform between the smallest and the largest, or `log_normal`."""
    p_mean: float = -1.2
    """P_mean, the mean of log σ; read by `noise=log_normal`."""
    p_std: PositiveFloat = 1.2
    """P_std, the standard deviation of log σ; read by `noise=log_normal`."""

    unconditional: Fraction = 0.0
    """Probability that a training example's condition is dropped, so that the network also learns the score
    without a condition, which `sampling.guidance` needs."""

    optimizer: Annotated[str, AfterValidator(_word_or_path("adam", "adamw", "muon"))] = "adam"
    """`adam`; `adamw`, with weight decay; or `muon` for kernels, and Adam for the rest. Or the import path of
    your own, a function of the learning rate's schedule to an optax transformation, such as `optax:lion`."""
    learning_rate: PositiveFloat = 1e-3
    """Learning rate after the warm-up."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or a cosine decay to 0 at the last step."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate grows linearly from 0."""
    beta1: Fraction = 0.9
    """Adam's decay rate of the gradient's mean; Muon's is 0.95."""
    beta2: Fraction = 0.999
    """Adam's decay rate of the squared gradient's mean."""
    epsilon: PositiveFloat = 1e-8
    """Adam's ε, which is added to the denominator."""
    weight_decay: NonNegativeFloat = 0.0
    """Rate at which weights decay, relative to the learning rate; biases, scales and embeddings don't. Read
    by adamw and muon."""
    gradient_clip: PositiveFloat | None = None
    """Largest global norm of a gradient; larger gradients are scaled down to it. None doesn't clip."""

    preview_every: PositiveInt = 5_000
    """Steps between pictures of samples."""
    preview_samples: PositiveInt = 64
    """Samples in each of these pictures."""


class Sampling(StrictSettings):
    """Sampling method and its parameters; a setting that is "read by" some methods is ignored by the rest.

    The settings are flat, and not a union by method, so that flags can choose another method for a trained
    run and set its parameters in one command. docs/program.md lists them by method.
    """

    num_samples: PositiveInt = 64
    """Number of samples that `--mode sample` and the end of training draw."""
    batch_size: PositiveInt | None = None
    """Chains that run at once, over all local devices; None is as many as memory allows, up to 256 per
    device."""
    seed: Seed = 0
    """Seed of the samples and restorations."""
    ema_length: Annotated[float, Field(gt=0, le=LONGEST)] | None = None
    """Length σ_rel of the average by a power function whose network draws, made of the run's two averages and
    their snapshots; None is the run's own average. Not read by training, nor by evaluation, which has lengths
    of its own."""
    shown_channels: Annotated[tuple[NonNegativeInt, ...] | None, FROM_JSON] = None
    """Channels of arrays in pictures, one or three; None is all if there are one or three, and otherwise the
    first. Not read by evaluation."""

    condition: Annotated[str, Field(min_length=1)] | None = None
    """Condition of samples and restorations: the name or the number of a class; `each`, all classes in turn;
    the numbers of a vector, such as 0.3,1.2; or a .npy file of one condition a row, or a .npz file with an
    array for each part, which are taken in turn. None draws conditions of the training examples for samples,
    and gives restorations the null condition."""
    guidance: NonNegativeFloat = 1.0
    """Weight w of classifier-free guidance, s_u + w (s_c − s_u): 1 is the conditional score s_c, 0 the score
    s_u without a condition; larger weights show the condition more clearly. Weights other than 1 need
    `training.unconditional`."""
    guidance_interval: Annotated[tuple[float, float] | None, BeforeValidator(_interval)] = None
    """Noise levels σ, from above the first to the second, with guidance; at others the score is s_c. None is
    all levels."""

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


class Restoration(StrictSettings):
    """Observations that images are restored from, and interpolation; `sampling` holds the sampler."""

    num_samples: PositiveInt = 4
    """Number of restorations of each image; for interpolation through noise, number of rows."""
    given: Literal["originals", "observations"] = "originals"
    """Kind of the given images: originals, from which observations are made here, or observations."""
    noise: NonNegativeFloat | Annotated[str, Field(min_length=1), AfterValidator(expanded)] = 0.0
    """σ_y, the standard deviation of the noise in an observation, in the units of images in [0, 1] or of
    arrays: a number, or a .npy file of one number for each value, infinite where nothing was measured."""
    mask: Annotated[str, Field(min_length=1), AfterValidator(expanded)] = "left"
    """Known pixels: the `left`, `right`, `top` or `bottom` half; all except a square in the `centre`, half as
    high and wide; `random` pixels; or the white pixels of a PNG file. Read by inpaint."""
    known: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Fraction of known pixels with the mask `random`; read by inpaint."""
    factor: Annotated[int, Field(ge=2)] = 2
    """Side of the blocks that are averaged, in pixels; read by superres."""
    psf: Annotated[str, Field(min_length=1), AfterValidator(_psf)] = "gaussian:1.5"
    """Point-spread function: `gaussian:` and its standard deviation in pixels, or a .npy file. Images are
    taken for periodic. Read by deblur."""
    operator: Annotated[str, Field(pattern=IMPORT_PATH)] | None = None
    """Import path of a real-linear function of one image, or array, such as `my_package.telescope:operator`,
    in the units of the data: the map from an image to its observation without noise. Read by restore."""
    through: Literal["noise", "latents"] = "noise"
    """Path of the interpolation: `noise`, between samples whose injected noise is interpolated (NCSNv2), or
    `latents`, between images through their latents of the probability flow. Read by interpolate."""
    num_interpolations: Annotated[int, Field(ge=2)] = 8
    """Number of images in a row; read by interpolate."""


class Config(StrictSettings):
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
    def _noise_and_sampler_fit_the_network(self) -> "Config":
        method, name, is_discrete = self.sampling.method, self.model.name, self.model.is_discrete
        # NCSN's levels are too far apart for a predictor; a thousand levels of NCSN++ aren't.
        at_levels = ("consistent",) if name == "ncsn" else ("consistent", "pc")
        if is_discrete and method not in ("annealed", *at_levels):
            accepted = ", ".join(map(repr, at_levels))
            raise ValueError(
                f"sampling.method={method!r} needs scores at any σ, found model.name={name!r}, which embeds "
                f"discrete levels; accepted: 'annealed' or {accepted}, or a model for any σ, such as 'ncsnv2'"
            )
        if is_discrete and method in at_levels and self.sampling.num_levels:
            raise ValueError(
                f"sampling.num_levels={self.sampling.num_levels}: model.name={name!r} embeds discrete levels "
                "and can be sampled only at these; accepted: None"
            )
        if self.model.sigmas != "auto" and len(self.model.noise_levels) < 2 and method != "annealed":
            raise ValueError(
                f"sampling.method={method!r} needs at least two noise levels, found one; accepted: 'annealed'"
            )
        if is_discrete and self.training.noise != "discrete":
            raise ValueError(
                f"training.noise={self.training.noise!r} needs a network for any σ, found model.name="
                f"{name!r}, which embeds discrete levels; accepted: a model for any σ, such as 'ncsnv2'"
            )
        return self

    @model_validator(mode="after")
    def _conditions_need_data(self) -> "Config":
        is_own, weight = ":" in self.data.name, self.sampling.guidance
        if self.data.condition == "none":
            given = {
                "sampling.condition": (self.sampling.condition, None),
                "sampling.guidance": (weight, 1.0),
                "sampling.guidance_interval": (self.sampling.guidance_interval, None),
                "training.unconditional": (0.0 if is_own else self.training.unconditional, 0.0),
            }
            for name, (value, default) in given.items():
                if value != default:
                    raise ValueError(
                        f"{name}={value!r}: the network takes no condition, as data.condition='none'; leave "
                        "it out, or train with another data.condition"
                    )
        elif self.model.name == "ncsnv2":
            raise ValueError(
                f"data.condition={self.data.condition!r}: model.name='ncsnv2' takes no condition; accepted: "
                "'ncsn', 'ncsnpp', 'mlp', or your own"
            )
        if weight == 1 and self.sampling.guidance_interval is not None:
            raise ValueError(
                f"sampling.guidance_interval={self.sampling.guidance_interval}: there is no guidance with "
                "sampling.guidance=1.0; leave it out, or choose another weight"
            )
        if weight != 1 and self.training.unconditional == 0:
            raise ValueError(
                f"sampling.guidance={weight}: the network was never trained without a condition, "
                "training.unconditional=0.0; accepted: 1.0, or a network trained with, for example, 0.1"
            )
        return self

    @model_validator(mode="after")
    def _lengths_need_averages(self) -> "Config":
        lengths = (self.sampling.ema_length, *self.evaluation.ema_lengths)
        if set(lengths) != {None} and not self.training.ema_lengths:
            raise ValueError(
                f"sampling.ema_length={lengths[0]}, evaluation.ema_lengths={lengths[1:]}: other lengths are "
                "made of training.ema_lengths, found none; leave both out, or train with two lengths"
            )
        return self

    @property
    def reads_data_std(self) -> bool:
        """Whether the network or the objective needs σ_d."""
        return "karras" in (self.model.preconditioning, self.training.weighting)


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
        raise UserError(one_line(error, "config", tagged=("model",))) from None
