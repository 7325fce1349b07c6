"""Langevin dynamics and its annealed form, each for a single chain: `jax.vmap` runs many.

The paper's Algorithm 1 writes the update as x + (α/2) s + √α z. The official code, which produced the
paper's numbers, computes x + α s + √(2α) z, and so does this module: its step size α is half the paper's.
"""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ncsn_jax.dtypes import floating, root, scalars
from ncsn_jax.samplers.sampler import Sampler, down_to_zero, run
from ncsn_jax.typing import PRNGKey, Scalar, ScoreFn, Sigmas


def langevin_step(
    key: PRNGKey,
    score: Float[Array, "*event"],
    x: Float[Array, "*event"],
    step_size: Scalar,
    *,
    temperature: Scalar = 1.0,
) -> Float[Array, "*event"]:
    """Take one step of the unadjusted Langevin algorithm, x + α s + √(2α·temperature) z with z ~ N(0, I).

    Args:
      key: the key of this step.
      score: s(x), the score at x, shape `(*event,)`.
      x: the state, shape `(*event,)`.
      step_size: α, in squared units of x.
      temperature: the variance of z; 1 samples from p, 0 ascends its density.

    Returns:
      The next state, shape `(*event,)`.

    Reference:
      Song & Ermon 2019 (arXiv:1907.05600), equation 4, with α for their ε/2.
    """
    x = floating(x)
    noise = jax.random.normal(key, x.shape, x.dtype)
    return langevin_update(noise, score, x, step_size, temperature=temperature)


def langevin_update(
    noise: Float[Array, "*event"],
    score: Float[Array, "*event"],
    x: Float[Array, "*event"],
    step_size: Scalar,
    *,
    temperature: Scalar = 1.0,
) -> Float[Array, "*event"]:
    """`langevin_step` with given noise, x + α s + √(2α·temperature) z.

    Args:
      noise: z, shape `(*event,)`.
      score: s(x), the score at x, shape `(*event,)`.
      x: the state, shape `(*event,)`.
      step_size: α, in squared units of x.
      temperature: the variance of the noise term, relative to Langevin's.

    Returns:
      The next state, shape `(*event,)`.

    Reference:
      Song & Ermon 2019 (arXiv:1907.05600), equation 4, with α for their ε/2.
    """
    step_size, temperature = scalars(x, step_size, temperature)
    noise_std = root(2.0 * step_size * temperature)
    return (x + step_size * score + noise_std * noise).astype(x.dtype)


def langevin_dynamics(
    key: PRNGKey,
    field: Callable[[Float[Array, "*event"]], Float[Array, "*event"]],
    x: Float[Array, "*event"],
    *,
    step_size: Scalar,
    num_steps: int,
    temperature: Scalar = 1.0,
) -> Float[Array, "*event"]:
    """Run `num_steps` Langevin steps with one score.

    Args:
      key: the chain's key; step t draws from its `fold_in(t)`.
      field: s(x), a score without σ; bind σ by a lambda or `functools.partial`.
      x: the initial state, shape `(*event,)`.
      step_size: α, in squared units of x.
      num_steps: T, the number of updates.
      temperature: the variance of the injected noise, relative to Langevin's.

    Returns:
      The state after the last update, shape `(*event,)`.

    Reference:
      Song & Ermon 2019 (arXiv:1907.05600), equation 4.
    """

    def update(key, x):
        return langevin_step(key, field(x), x, step_size, temperature=temperature)

    return repeat(key, update, x, num_steps)


def annealed_langevin_dynamics(
    key: PRNGKey,
    score_fn: ScoreFn,
    x: Float[Array, "*event"],
    sigmas: Sigmas,
    *,
    step_size: Scalar,
    steps_per_scale: int,
    temperature: Scalar = 1.0,
    denoise: bool = False,
) -> Float[Array, "*event"]:
    """Annealed Langevin dynamics: Langevin dynamics at every noise level in turn, from the largest down.

    Level i runs `steps_per_scale` steps of size αᵢ = ε σᵢ²/σ_L², which keeps the ratio of the drift to the
    noise, ‖αᵢ s(x, σᵢ)‖ / √(2αᵢ), about the same at every level.

    Args:
      key: the chain's key; level i draws from its `fold_in(i)`.
      score_fn: s(x, σ).
      x: the initial state, shape `(*event,)`; the official code draws it uniformly from [0, 1].
      sigmas: the noise levels, descending, shape `(num_scales,)`.
      step_size: ε, the step size of the last level, in squared units of x.
      steps_per_scale: T, the number of updates at each level.
      temperature: the variance of the injected noise, relative to Langevin's.
      denoise: whether to return the denoised mean E[x₀ | x] = x + σ_L² s(x, σ_L) (Tweedie's formula) of the
        last state.

    Returns:
      The last state, or its denoised mean, shape `(*event,)`.

    Reference:
      Song & Ermon 2019 (arXiv:1907.05600), Algorithm 1; the final denoising is from Jolicoeur-Martineau et
      al. 2020 (arXiv:2009.05475).
    """

    sampler = annealed_langevin_sampler(
        sigmas,
        step_size=step_size,
        steps_per_scale=steps_per_scale,
        temperature=temperature,
        denoise=denoise,
    )
    return run(key, sampler, score_fn, x)


def annealed_langevin_sampler(
    sigmas: Sigmas,
    *,
    step_size: Scalar,
    steps_per_scale: int,
    temperature: Scalar = 1.0,
    denoise: bool = False,
) -> Sampler:
    """Return `annealed_langevin_dynamics` as a `Sampler`; the arguments are its own."""

    def update(key, score_fn, x, sigma, alpha):
        return langevin_step(key, score_fn(x, sigma), x, alpha, temperature=temperature)

    finish = denoising(sigmas[-1]) if denoise else None
    return annealed(update, sigmas, step_size=step_size, steps_per_scale=steps_per_scale, finish=finish)


def annealed(
    update: Callable[..., Any],
    sigmas: Sigmas,
    *,
    step_size: Scalar,
    steps_per_scale: int,
    finish: Callable[[ScoreFn, Array], Array] | None = None,
) -> Sampler:
    """Return the sampler that repeats an update at every noise level in turn.

    Args:
      update: a function from (key, score_fn, x, σᵢ, αᵢ) to the next x, with αᵢ = ε σᵢ²/σ_L². Step t of level
        i gets the key `fold_in(fold_in(key, i), t)`.
      sigmas: the noise levels, descending, shape `(num_scales,)`.
      step_size: ε, the step size of the last level, in squared units of x.
      steps_per_scale: T, the number of updates at each level.
      finish: the last operation of the sampler.

    Raises:
      ValueError: if there are no levels, or the number of updates is negative.

    Reference:
      Song & Ermon 2019 (arXiv:1907.05600), Algorithm 1, with lines 5 and 6 replaced by the update.
    """
    shape = jnp.shape(jnp.asarray(sigmas))
    if len(shape) != 1 or not shape[0] or operator.index(steps_per_scale) < 0:
        raise ValueError(
            "sigmas must be a row of levels and steps_per_scale at least 0, found the shape "
            f"{shape} and {steps_per_scale}"
        )

    def step(key, score_fn, x, sigma, next_sigma):
        (levels,) = scalars(x, sigmas)
        alpha = level_step_size(step_size, sigma, levels)
        return repeat(key, lambda key, x: update(key, score_fn, x, sigma, alpha), x, steps_per_scale)

    return Sampler(step, down_to_zero(sigmas), finish)


def repeat(
    key: PRNGKey,
    update: Callable[[PRNGKey, Float[Array, "*event"]], Float[Array, "*event"]],
    x: Float[Array, "*event"],
    num_steps: int,
) -> Float[Array, "*event"]:
    """Update x `num_steps` times, each with its own `fold_in` of the key.

    Raises:
      ValueError: if the number of steps is negative.
    """
    if operator.index(num_steps) < 0:
        raise ValueError(f"num_steps must be at least 0, found {num_steps}")

    def step(x, t):
        return update(jax.random.fold_in(key, t), x), None

    return jax.lax.scan(step, x, jnp.arange(num_steps))[0]


def level_step_size(
    step_size: Scalar, sigma: Scalar, sigmas: Float[Array, " num_scales"]
) -> Float[Array, ""]:
    """The step size αᵢ = ε σᵢ²/σ_L² of one noise level (Song & Ermon 2019, Algorithm 1, line 3)."""
    return jnp.square(sigma / sigmas[-1]) * step_size


def denoised(score_fn: ScoreFn, x: Float[Array, "*event"], sigma: Scalar) -> Float[Array, "*event"]:
    """Tweedie's formula, E[x₀ | x] = x + σ² s(x, σ): the mean of clean data given its perturbation x."""
    (sigma,) = scalars(x, sigma)
    return (x + sigma**2 * score_fn(x, sigma)).astype(x.dtype)


def denoising(sigma: Scalar) -> Callable[[ScoreFn, Array], Array]:
    """Return the last operation of a sampler that ends at σ: `denoised`."""
    return lambda score_fn, x: denoised(score_fn, x, sigma)
