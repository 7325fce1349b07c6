"""The objectives of training: losses of `ncsn_jax.losses` at a random noise level."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ncsn_jax.config import Training
from ncsn_jax.losses import denoising_score_matching, sliced_score_matching
from ncsn_jax.noise import log_uniform_sigma
from ncsn_jax.typing import PRNGKey, ScoreFn

Objective = Callable[[PRNGKey, ScoreFn, Float[Array, "*event"]], Float[Array, ""]]
"""The loss of one clean example; its noise level and all other randomness come from its key."""


def objective(sigmas: tuple[float, ...], settings: Training) -> Objective:
    """Return the objective that the settings name.

    The noise level is drawn uniformly from `sigmas` or, with continuous noise, log-uniformly between the
    first and the last of them.

    `denoising`, with discrete levels, is `ncsn_loss`. `sliced` is sliced score matching of the perturbed
    example, λ(σ) ℓ(x + σz) of s(·, σ): the official code's `ssm`, if the projections are Gaussian.

    Args:
      sigmas: the noise levels, descending.
      settings: the objective, the noise, the power of the weight λ(σ) = σ^power, and the projections.
    """
    levels, power = jnp.asarray(sigmas), settings.power

    draw_sigma = {
        "discrete": lambda key: jax.random.choice(key, levels),
        "continuous": lambda key: log_uniform_sigma(key, levels[0], levels[-1]),
    }[settings.noise]

    def denoising(key, score_fn, x):
        level_key, noise_key = jax.random.split(key)
        return denoising_score_matching(noise_key, score_fn, x, draw_sigma(level_key), power=power)

    def sliced(key, score_fn, x):
        level_key, noise_key, projection_key = jax.random.split(key, 3)
        sigma = draw_sigma(level_key).astype(x.dtype)
        loss = sliced_score_matching(
            projection_key,
            lambda perturbed: score_fn(perturbed, sigma),
            x + sigma * jax.random.normal(noise_key, x.shape, x.dtype),
            num_projections=settings.num_projections,
            projection=settings.projection,
        )
        return sigma**power * loss

    return {"denoising": denoising, "sliced": sliced}[settings.objective]
