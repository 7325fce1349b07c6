"""Rows of samples that pass from one to another, each for a single row."""

import functools
from typing import Unpack

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ncsn_jax.dtypes import floating, wide, widened
from ncsn_jax.samplers.langevin import annealed, denoised, langevin_update
from ncsn_jax.samplers.probability_flow import SolverOptions, probability_flow
from ncsn_jax.samplers.sampler import Sampler, run
from ncsn_jax.typing import PRNGKey, Scalar, ScoreFn, Sigmas


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
    """Draw a row of samples that interpolates from the first to the last, like the official NCSNv2.

    The chains k = 0 … K−1 start at the same x and get the noise z_k = cos(θ_k) p + sin(θ_k) q with
    θ_k = ½πk/(K−1), where p and q are shared by all chains and new at every step. Each z_k is N(0, I), so
    each chain on its own is annealed Langevin dynamics.

    Args:
      key: the row's key.
      score_fn: s(x, σ).
      x: the initial state of every chain, shape `(*event,)`.
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
    sampler = interpolation_sampler(
        sigmas,
        step_size=step_size,
        steps_per_scale=steps_per_scale,
        temperature=temperature,
        denoise=denoise,
    )
    return run(key, sampler, score_fn, jnp.broadcast_to(floating(x), (num_interpolations, *x.shape)))


def interpolation_sampler(
    sigmas: Sigmas,
    *,
    step_size: Scalar,
    steps_per_scale: int,
    temperature: Scalar = 1.0,
    denoise: bool = False,
) -> Sampler:
    """Return `interpolate` as a `Sampler` of rows; the arguments are its own."""

    def finish(score_fn, row):
        return jax.vmap(lambda x: denoised(score_fn, x, sigmas[-1]))(row)

    return annealed(
        functools.partial(interpolation_update, temperature=temperature),
        sigmas,
        step_size=step_size,
        steps_per_scale=steps_per_scale,
        finish=finish if denoise else None,
    )


def interpolation_update(
    key: PRNGKey,
    score_fn: ScoreFn,
    row: Float[Array, "num_interpolations *event"],
    sigma: Scalar,
    step_size: Scalar,
    *,
    temperature: Scalar = 1.0,
) -> Float[Array, "num_interpolations *event"]:
    """Take one Langevin step of all chains of `interpolate`, at one level."""
    p, q = jax.random.normal(key, (2, *row.shape[1:]), row.dtype)

    def update(angle, x):
        noise = jnp.cos(angle) * p + jnp.sin(angle) * q
        return langevin_update(noise, score_fn(x, sigma), x, step_size, temperature=temperature)

    return jax.vmap(update)(jnp.linspace(0.0, jnp.pi / 2.0, len(row), dtype=wide(row)), row)


def interpolate_latents(
    score_fn: ScoreFn,
    x: Float[Array, "*event"],
    other: Float[Array, "*event"],
    sigmas: Sigmas,
    *,
    num_interpolations: int,
    **options: Unpack[SolverOptions],
) -> Float[Array, "num_interpolations *event"]:
    """Interpolate between two images through their latents of the probability flow.

    Both are encoded from σ_L up to σ₁, an arc (`slerp`) joins their latents, and its points are decoded.

    Args:
      score_fn: s(x, σ), for any σ.
      x: the first image, shape `(*event,)`.
      other: the last image, shape `(*event,)`.
      sigmas: the noise levels, descending; the flow goes between the first and the last.
      num_interpolations: K, the number of images in the row.
      options: the settings of `probability_flow`'s solver.

    Returns:
      The row, shape `(num_interpolations, *event)`; its ends are the two images up to the tolerance.

    Raises:
      ValueError: if the score comes from a network of discrete levels.

    Reference:
      Song et al. 2021 (arXiv:2011.13456), appendix D.5.
    """

    def follow(x, start, stop):
        return probability_flow(score_fn, x, start, stop, **options)

    ends = jnp.stack([widened(x), widened(other)])
    latents = jax.vmap(lambda x: follow(x, sigmas[-1], sigmas[0]))(ends)
    row = slerp(latents[0], latents[1], num_interpolations)
    return jax.vmap(lambda x: follow(x, sigmas[0], sigmas[-1]))(row).astype(x.dtype)


def slerp(
    a: Float[Array, "*event"], b: Float[Array, "*event"], num_points: int
) -> Float[Array, "num_points *event"]:
    """Points of the arc from a to b, (sin((1 − t) θ) a + sin(t θ) b) / sin θ, θ the angle between them.

    Between two draws of N(0, σ² I) in many dimensions, all points of the arc are as long as the draws; points
    of the straight line would be shorter.
    """
    dtype, a, b = floating(a).dtype, widened(a), widened(b)
    cosine = jnp.vdot(a, b) / (jnp.linalg.norm(a.ravel()) * jnp.linalg.norm(b.ravel()))
    angle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))

    def point(t):
        near, far = jnp.sin((1.0 - t) * angle), jnp.sin(t * angle)
        on_arc = (near * a + far * b) / jnp.sin(angle)
        return jnp.where(jnp.sin(angle) > 1e-6, on_arc, (1.0 - t) * a + t * b)

    return jax.vmap(point)(jnp.linspace(0.0, 1.0, num_points, dtype=a.dtype)).astype(dtype)
