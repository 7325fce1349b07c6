"""Samplers that also see an observation, or each other; each for a single image."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from ncsn_jax.langevin import anneal, denoised, langevin_step, langevin_update
from ncsn_jax.typing import PRNGKey, Scalar, ScoreFn, Sigmas


def inpaint(
    key: PRNGKey,
    score_fn: ScoreFn,
    x: Float[Array, "*event"],
    sigmas: Sigmas,
    observation: Float[Array, "*event"],
    *,
    mask: Bool[Array, "*event"],
    step_size: Scalar,
    steps_per_scale: int,
    temperature: Scalar = 1.0,
    denoise: bool = False,
) -> Float[Array, "*event"]:
    """Completes an image of which some pixels are known, as the official NCSNv2 does.

    Annealed Langevin dynamics, in which the known pixels of the state are replaced by y + √temperature σᵢ z
    before every update. The result is the state after the last update, which moves them once more:
    `jnp.where(mask, observation, result)` has them as they were.

    Args:
      key: the chain's key.
      score_fn: s(x, σ).
      x: the first state, shape `(*event,)`; the official code draws it uniformly from [0, 1].
      sigmas: the noise levels, descending, shape `(num_scales,)`.
      observation: y, the image; its unknown pixels are not read, shape `(*event,)`.
      mask: where it is known, shape `(*event,)`.
      step_size: ε, the step size of the last level, in squared units of x.
      steps_per_scale: T, the number of updates at each level.
      temperature: the variance of the injected noise, relative to Langevin's; 0 injects none.
      denoise: whether to return the denoised mean of the last state (the official code doesn't).

    Returns:
      The completed image, shape `(*event,)`.

    Raises:
      ValueError: if the state, the observation and the mask differ in shape.

    Reference:
      Song & Ermon 2019 (arXiv:1907.05600), section 5, as the code of Song & Ermon 2020 (arXiv:2006.09011)
      runs it.
    """
    if not x.shape == observation.shape == mask.shape:
        raise ValueError(
            "x, observation and mask must have one shape, found "
            f"{x.shape}, {observation.shape} and {mask.shape}"
        )

    def update(key, x, sigma, alpha):
        pin_key, noise_key = jax.random.split(key)
        noise = jnp.sqrt(temperature) * sigma * jax.random.normal(pin_key, x.shape, x.dtype)
        x = jnp.where(mask, observation + noise, x)
        return langevin_step(noise_key, score_fn(x, sigma), x, alpha, temperature=temperature)

    x = anneal(key, update, x, sigmas, step_size=step_size, steps_per_scale=steps_per_scale)
    return denoised(score_fn, x, sigmas[-1]) if denoise else x


def interpolate(
    key: PRNGKey,
    score_fn: ScoreFn,
    x: Float[Array, "*event"],
    sigmas: Sigmas,
    *,
    num_interpolations: int,
    step_size: Scalar,
    steps_per_scale: int,
    temperature: Scalar = 1.0,
    denoise: bool = False,
) -> Float[Array, "num_interpolations *event"]:
    """A row of samples that pass from one to another, as the official NCSNv2 draws it.

    The chains k = 0 … K−1 start at the same x and get the noise z_k = cos(θ_k) p + sin(θ_k) q with
    θ_k = ½πk/(K−1), where p and q are common to all and new at every step. Each z_k is N(0, I), so each chain
    alone is annealed Langevin dynamics.

    Args:
      key: the row's key.
      score_fn: s(x, σ).
      x: the first state of every chain, shape `(*event,)`.
      sigmas: the noise levels, descending, shape `(num_scales,)`.
      num_interpolations: K, the number of chains.
      step_size: ε, the step size of the last level, in squared units of x.
      steps_per_scale: T, the number of updates at each level.
      temperature: the variance of the injected noise, relative to Langevin's; 0 injects none.
      denoise: whether to return the denoised means of the last states (the official code doesn't).

    Returns:
      The samples, shape `(num_interpolations, *event)`.

    Raises:
      ValueError: if there are no chains.

    Reference:
      Song & Ermon 2020 (arXiv:2006.09011), and its code.
    """
    if num_interpolations < 1:
        raise ValueError(f"num_interpolations must be at least 1, found {num_interpolations}")
    angles = jnp.linspace(0.0, jnp.pi / 2.0, num_interpolations).astype(x.dtype)

    def update(key, row, sigma, alpha):
        p, q = jax.random.normal(key, (2, *x.shape), x.dtype)

        def update_one(angle, x):
            noise = jnp.cos(angle) * p + jnp.sin(angle) * q
            return langevin_update(noise, score_fn(x, sigma), x, alpha, temperature=temperature)

        return jax.vmap(update_one)(angles, row)

    row = jnp.broadcast_to(x, (num_interpolations, *x.shape))
    row = anneal(key, update, row, sigmas, step_size=step_size, steps_per_scale=steps_per_scale)
    return jax.vmap(lambda x: denoised(score_fn, x, sigmas[-1]))(row) if denoise else row
