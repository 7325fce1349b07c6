"""Heun's method for the probability flow (Karras et al. 2022), for a single chain."""

import functools
import math

import jax
import jax.numpy as jnp

from ncsn_jax.dtypes import scalars
from ncsn_jax.samplers.process import Event, diffuse, flow, require_any_sigma
from ncsn_jax.samplers.sampler import Sampler, down_to_zero, run
from ncsn_jax.typing import PRNGKey, Scalar, ScoreFn, Sigmas


def heun_step(
    key: PRNGKey,
    score_fn: ScoreFn,
    x: Event,
    sigma: Scalar,
    next_sigma: Scalar,
    *,
    churn: Scalar = 0.0,
    s_min: Scalar = 0.0,
    s_max: Scalar = math.inf,
    s_noise: Scalar = 1.0,
) -> Event:
    """Take one step of `heun`: up to σ̂ = (1 + γ) σᵢ by fresh noise, down to σᵢ₊₁ by the probability flow.

    Args:
      key: the key of this step; it matters only if γ > 0.
      score_fn: s(x, σ).
      x: the state at σᵢ, shape `(*event,)`.
      sigma: σᵢ.
      next_sigma: σᵢ₊₁ < σᵢ; at 0, the step is Euler's, which is Tweedie's formula.
      churn: γ for σᵢ between s_min and s_max, the paper's min(S_churn/N, √2 − 1); elsewhere γ is 0.
      s_min: S_min.
      s_max: S_max.
      s_noise: S_noise, the standard deviation of the fresh noise relative to √(σ̂² − σᵢ²).

    Returns:
      The state at σᵢ₊₁, shape `(*event,)`.

    Raises:
      ValueError: if the score comes from a network of discrete levels.

    Reference:
      Karras et al. 2022 (arXiv:2206.00364), Algorithm 2, lines 4 to 12, for σ(t) = t.
    """
    require_any_sigma(score_fn)
    sigma, next_sigma, s_min, s_max = scalars(x, sigma, next_sigma, s_min, s_max)
    gamma = jnp.where((s_min <= sigma) & (sigma <= s_max), churn, 0.0)
    raised = (1.0 + gamma) * sigma
    x = diffuse(key, x, sigma, raised, temperature=jnp.square(s_noise))
    velocity = flow(score_fn, x, raised)
    euler = (x + (next_sigma - raised) * velocity).astype(x.dtype)

    def second_order():
        slope = 0.5 * (velocity + flow(score_fn, euler, next_sigma))
        return (x + (next_sigma - raised) * slope).astype(x.dtype)

    return jax.lax.cond(next_sigma > 0, second_order, lambda: euler)


def heun(
    key: PRNGKey,
    score_fn: ScoreFn,
    x: Event,
    sigmas: Sigmas,
    *,
    s_churn: float = 0.0,
    s_min: Scalar = 0.0,
    s_max: Scalar = math.inf,
    s_noise: Scalar = 1.0,
) -> Event:
    """Heun's second-order method for the probability flow, deterministic or with fresh noise ("churn").

    It takes N = L steps, and the last one, from σ_L to 0, is of first order: 2L − 1 score evaluations in all.
    Without churn it is Algorithm 1 of the paper and adds no noise; with churn it is Algorithm 2.

    Args:
      key: the chain's key; step i draws from its `fold_in(i)`.
      score_fn: s(x, σ), for any σ.
      x: the first state, with the noise σ₁, shape `(*event,)`.
      sigmas: the noise levels, descending, shape `(num_scales,)`; the paper's are
        `ncsn_jax.noise.karras_sigmas`.
      s_churn: S_churn, the noise added over all steps, on a logarithmic scale: each step raises σ by the
        share γ = min(S_churn/N, √2 − 1).
      s_min: S_min, the smallest σ at which noise is added.
      s_max: S_max, the largest σ at which noise is added.
      s_noise: S_noise, the standard deviation of the added noise relative to √(σ̂² − σᵢ²).

    Returns:
      The state without noise, shape `(*event,)`.

    Raises:
      ValueError: if the score comes from a network of discrete levels.

    Reference:
      Karras et al. 2022 (arXiv:2206.00364), Algorithms 1 and 2, for σ(t) = t.
    """
    sampler = heun_sampler(sigmas, s_churn=s_churn, s_min=s_min, s_max=s_max, s_noise=s_noise)
    return run(key, sampler, score_fn, x)


def heun_sampler(
    sigmas: Sigmas,
    *,
    s_churn: float = 0.0,
    s_min: Scalar = 0.0,
    s_max: Scalar = math.inf,
    s_noise: Scalar = 1.0,
) -> Sampler:
    """Return `heun` as a `Sampler`; the arguments are its own."""
    churn = churn_of(s_churn, len(sigmas))
    step = functools.partial(heun_step, churn=churn, s_min=s_min, s_max=s_max, s_noise=s_noise)
    return Sampler(step, down_to_zero(sigmas))


def churn_of(s_churn: float, num_steps: int) -> float:
    """γ = min(S_churn/N, √2 − 1), the share by which each of N steps raises σ (Karras et al. 2022)."""
    return min(s_churn / num_steps, math.sqrt(2.0) - 1.0)
