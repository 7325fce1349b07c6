"""The objectives of training: losses of `ncsn_jax.losses` at a random noise level."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float

from ncsn_jax.losses import Projection, denoising_score_matching, sliced_score_matching
from ncsn_jax.noise import log_normal_sigma, log_uniform_sigma
from ncsn_jax.runtime.errors import ArgumentError
from ncsn_jax.typing import PRNGKey, ScoreFn

Objective = Callable[[PRNGKey, ScoreFn, Any], Float[Array, ""]]
"""The loss of one clean example; its noise level and all other randomness come from its key."""


class LogNormal(NamedTuple):
    """The distribution exp(P_mean + P_std z) of noise levels, with z ~ N(0, 1)."""

    p_mean: float = -1.2
    p_std: float = 1.2


Noise = Literal["discrete", "continuous"] | LogNormal
"""Distribution of an example's noise level: uniform over the given levels, log-uniform between the first and
the last of them, or log-normal whatever the levels are."""


def denoising_objective(
    sigmas: tuple[float, ...],
    *,
    power: float = 2.0,
    noise: Noise = "discrete",
    reduce_mean: bool = False,
    likelihood_weighting: bool = False,
    data_std: float = math.inf,
) -> Objective:
    """Return denoising score matching at a random noise level; with discrete levels, it is `ncsn_loss`.

    Args:
      sigmas: the noise levels, descending.
      power: the exponent of the weight λ(σ) = σ^power (1 + σ²/σ_d²).
      noise: the distribution of the noise level.
      reduce_mean: an argument of `loss_scale`, like the next.
      likelihood_weighting: whether the loss bounds the negative log-likelihood; `power` must be 2 then.
      data_std: σ_d in the weight. With the data's standard deviation and `power=2` it is the weight of Karras
        et al., which is 1 for the output of a `Preconditioned` network; with ∞ it is σ^power.

    Reference:
      Song & Ermon 2019 (arXiv:1907.05600), equation 6; Song et al. 2021 (arXiv:2011.13456), equation 7, and
      "Maximum likelihood training" (arXiv:2101.09258), equation 7, for the likelihood's weight; Karras et al.
      2022 (arXiv:2206.00364), table 1.
    """
    is_of_levels = noise in ("discrete", "continuous") and math.isinf(data_std)
    if likelihood_weighting and (power != 2 or len(sigmas) < 2 or not is_of_levels):
        raise ArgumentError(
            f"likelihood_weighting=True: found power={power}, noise={noise!r}, data_std={data_std} and "
            f"{len(sigmas)} noise levels; accepted: power=2, noise from at least two levels, data_std=inf"
        )
    draw_sigma = _sigma(sigmas, noise)

    def objective(key, score_fn, x):
        level_key, noise_key = jax.random.split(key)
        sigma = draw_sigma(level_key)
        loss = denoising_score_matching(noise_key, score_fn, x, sigma, power=power)
        if math.isfinite(data_std):
            loss = loss * (1.0 + jnp.square(sigma / data_std)).astype(loss.dtype)
        scale = loss_scale(sigmas, x.size, reduce_mean=reduce_mean, likelihood_weighting=likelihood_weighting)
        return loss if scale == 1 else scale * loss

    return objective


def loss_scale(
    sigmas: tuple[float, ...], size: int, *, reduce_mean: bool, likelihood_weighting: bool
) -> float:
    """Return the factor between the loss ½ σ² ‖s + z/σ‖² and the release's of Song et al. 2021.

    Args:
      sigmas: the noise levels, descending.
      size: the number of elements of an example.
      reduce_mean: whether the squares are averaged, 2/size, instead of ½ of their sum.
      likelihood_weighting: whether the weight is g² = 2 log(σ₁/σ_L) σ², the square of the diffusion of the
        variance-exploding process, which is in proportion to σ².
    """
    scale = 2.0 / size if reduce_mean else 1.0
    return scale * (2.0 * math.log(sigmas[0] / sigmas[-1]) if likelihood_weighting else 1.0)


def sliced_objective(
    sigmas: tuple[float, ...],
    *,
    power: float = 2.0,
    noise: Noise = "discrete",
    num_projections: int = 1,
    projection: Projection = "gaussian",
) -> Objective:
    """Return sliced score matching of the perturbed example, λ(σ) ℓ(x + σz) of s(·, σ).

    With Gaussian projections, it is the official code's `ssm`.

    Args:
      sigmas: the noise levels, descending.
      power: the exponent of the weight λ(σ) = σ^power.
      noise: the distribution of the noise level.
      num_projections: the number of projection directions per example.
      projection: the distribution of the directions.
    """
    draw_sigma = _sigma(sigmas, noise)

    def objective(key, score_fn, x):
        level_key, noise_key, projection_key = jax.random.split(key, 3)
        sigma = draw_sigma(level_key).astype(x.dtype)
        loss = sliced_score_matching(
            projection_key,
            lambda perturbed: score_fn(perturbed, sigma),
            x + sigma * jax.random.normal(noise_key, x.shape, x.dtype),
            num_projections=num_projections,
            projection=projection,
        )
        return sigma**power * loss

    return objective


def classification_objective(sigmas: tuple[float, ...], *, noise: Noise = "continuous") -> Objective:
    """Return the cross-entropy −log p(c | x + σz, σ) of a noise-conditional classifier.

    Its examples are dictionaries of `x` and `label`, the class c, and its `score_fn` returns logits.

    Args:
      sigmas: the noise levels, descending.
      noise: the distribution of the noise level.

    Reference:
      Song et al. 2021 (arXiv:2011.13456), appendix I.
    """
    draw_sigma = _sigma(sigmas, noise)

    def objective(key, score_fn, example):
        level_key, noise_key = jax.random.split(key)
        x, sigma = example["x"], draw_sigma(level_key)
        perturbed = x + sigma * jax.random.normal(noise_key, x.shape, x.dtype)
        logits = score_fn(perturbed, sigma)
        return optax.softmax_cross_entropy_with_integer_labels(logits, example["label"])

    return objective


def _sigma(sigmas: tuple[float, ...], noise: Noise) -> Callable[[PRNGKey], Array]:
    if isinstance(noise, LogNormal):
        return lambda key: log_normal_sigma(key, *noise)
    levels = jnp.asarray(sigmas)
    return {
        "discrete": lambda key: jax.random.choice(key, levels),
        "continuous": lambda key: log_uniform_sigma(key, levels[0], levels[-1]),
    }[noise]
