"""The objectives of training: losses of `ncsn_jax.losses` at a random noise level."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ncsn_jax.losses import Projection, denoising_score_matching, sliced_score_matching
from ncsn_jax.noise import log_uniform_sigma
from ncsn_jax.typing import PRNGKey, ScoreFn

Objective = Callable[[PRNGKey, ScoreFn, Any], Float[Array, ""]]
"""The loss of one clean example; its noise level and all other randomness come from its key."""

Noise = Literal["discrete", "continuous"]
"""Distribution of an example's noise level: uniform over the given levels, or log-uniform between the first
and the last of them."""


def denoising_objective(
    sigmas: tuple[float, ...], *, power: float = 2.0, noise: Noise = "discrete"
) -> Objective:
    """Return denoising score matching at a random noise level; with discrete levels, it is `ncsn_loss`.

    Args:
      sigmas: the noise levels, descending.
      power: the exponent of the weight λ(σ) = σ^power.
      noise: the distribution of the noise level.
    """
    draw_sigma = _sigma(sigmas, noise)

    def objective(key, score_fn, x):
        level_key, noise_key = jax.random.split(key)
        return denoising_score_matching(noise_key, score_fn, x, draw_sigma(level_key), power=power)

    return objective


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


def _sigma(sigmas: tuple[float, ...], noise: Noise) -> Callable[[PRNGKey], Array]:
    levels = jnp.asarray(sigmas)
    return {
        "discrete": lambda key: jax.random.choice(key, levels),
        "continuous": lambda key: log_uniform_sigma(key, levels[0], levels[-1]),
    }[noise]
