"""What training minimises: an objective of `ncsn_jax.losses` at a random noise level."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ncsn_jax.config import Training
from ncsn_jax.losses import ncsn_loss, sliced_score_matching
from ncsn_jax.typing import PRNGKey, ScoreFn

Objective = Callable[[PRNGKey, ScoreFn, Float[Array, "*event"]], Float[Array, ""]]
"""The loss of one clean example, with its noise level and all else drawn from its key."""


def objective(sigmas: tuple[float, ...], settings: Training) -> Objective:
    """The objective that the settings name.

    `denoising` is `ncsn_loss`. `sliced` is sliced score matching of the perturbed example, λ(σ) ℓ(x + σz) of
    s(·, σ) at a level drawn uniformly: the official code's `ssm`, if the projections are Gaussian.

    Args:
      sigmas: the noise levels.
      settings: which objective, the power of its weight λ(σ) = σ^power, and its projections.
    """
    levels, power = jnp.asarray(sigmas), settings.power

    def denoising(key, score_fn, x):
        return ncsn_loss(key, score_fn, x, levels, power=power)

    def sliced(key, score_fn, x):
        level_key, noise_key, projection_key = jax.random.split(key, 3)
        sigma = jax.random.choice(level_key, levels).astype(x.dtype)
        loss = sliced_score_matching(
            projection_key,
            lambda perturbed: score_fn(perturbed, sigma),
            x + sigma * jax.random.normal(noise_key, x.shape, x.dtype),
            num_projections=settings.num_projections,
            projection=settings.projection,
        )
        return sigma**power * loss

    return {"denoising": denoising, "sliced": sliced}[settings.objective]
