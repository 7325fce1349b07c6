"""Consistent annealed sampling (Jolicoeur-Martineau et al. 2021), for a single chain."""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax.core import Tracer

from ncsn_jax.dtypes import root, scalars
from ncsn_jax.samplers.process import Event
from ncsn_jax.samplers.sampler import Sampler, down_to_zero, run
from ncsn_jax.typing import PRNGKey, Scalar, ScoreFn, Sigmas


def consistent_step(
    key: PRNGKey,
    score_fn: ScoreFn,
    x: Event,
    sigma: Scalar,
    next_sigma: Scalar,
    *,
    eta: Scalar | None = None,
    temperature: Scalar = 1.0,
    denoise: bool = False,
) -> Event:
    """Take one step of consistent annealed sampling: x + η σᵢ² s(x, σᵢ) + β σᵢ₊₁ z.

    The drift leaves a share 1 − η of the noise σᵢ; new noise, with β² = 1 − ((1 − η) σᵢ/σᵢ₊₁)², raises the
    level to σᵢ₊₁.

    Args:
      key: the key of this step.
      score_fn: s(x, σ).
      x: the state at σᵢ, shape `(*event,)`.
      sigma: σᵢ.
      next_sigma: σᵢ₊₁ < σᵢ; 0 for the last step.
      eta: η, between 1 − σᵢ₊₁/σᵢ (no noise: Euler's step of the probability flow) and 1 (denoising, then
        only new noise). None means 1 − (σᵢ₊₁/σᵢ)², the drift of the reverse diffusion.
      temperature: the variance of z.
      denoise: whether η is 1 in the last step.

    Returns:
      The state at σᵢ₊₁, shape `(*event,)`.

    Reference:
      Jolicoeur-Martineau et al. 2021 (arXiv:2009.05475), Algorithm 2.
    """
    sigma, next_sigma, temperature = scalars(x, sigma, next_sigma, temperature)
    if eta is None:
        eta = 1.0 - (next_sigma / sigma) ** 2
    elif denoise:
        eta = jnp.where(next_sigma > 0, eta, 1.0)
    # (β σᵢ₊₁)²; rounding may make it negative.
    variance = jnp.maximum(next_sigma**2 - ((1.0 - eta) * sigma) ** 2, 0.0)
    std = root(temperature * variance)
    drifted = x + eta * sigma**2 * score_fn(x, sigma)
    return (drifted + std * jax.random.normal(key, x.shape, x.dtype)).astype(x.dtype)


def consistent_annealed_sampling(
    key: PRNGKey,
    score_fn: ScoreFn,
    x: Event,
    sigmas: Sigmas,
    *,
    eta: float | None = None,
    temperature: Scalar = 1.0,
    denoise: bool = False,
) -> Event:
    """Consistent annealed sampling: one step per level, which leaves exactly the next level's noise.

    x ← x + η σᵢ² s(x, σᵢ) + β σᵢ₊₁ z for i = 1 … L, with σ_{L+1} = 0: L score evaluations. The score is
    evaluated only at the levels themselves, so a network of discrete levels can be sampled at its own.

    Args:
      key: the chain's key; step i draws from its `fold_in(i)`.
      score_fn: s(x, σ).
      x: the first state, with the noise σ₁, shape `(*event,)`.
      sigmas: the noise levels, descending, shape `(num_scales,)`.
      eta: η, the paper's ε/σ_L², the share of the noise that a step removes; see `consistent_step`.
      temperature: the variance of z.
      denoise: whether the last step removes all noise (η = 1, Tweedie's formula); it does if eta is None.

    Returns:
      The last state, shape `(*event,)`.

    Raises:
      ValueError: if η is less than 1 − σᵢ₊₁/σᵢ at any level, or more than 1 (checked only outside of
        `jax.jit`).

    Reference:
      Jolicoeur-Martineau et al. 2021 (arXiv:2009.05475), Algorithm 2, and their final denoising.
    """
    sampler = consistent_sampler(sigmas, eta=eta, temperature=temperature, denoise=denoise)
    return run(key, sampler, score_fn, x)


def consistent_sampler(
    sigmas: Sigmas, *, eta: float | None = None, temperature: Scalar = 1.0, denoise: bool = False
) -> Sampler:
    """Return `consistent_annealed_sampling` as a `Sampler`; the arguments are its own.

    Raises:
      ValueError: as there.
    """
    if eta is not None:
        check_eta(eta, sigmas)
    step = functools.partial(consistent_step, eta=eta, temperature=temperature, denoise=denoise)
    return Sampler(step, down_to_zero(sigmas))


def check_eta(eta: float, sigmas: Sigmas) -> None:
    """Check that noise can be added after each step of consistent annealed sampling.

    Raises:
      ValueError: if η is less than 1 − σᵢ₊₁/σᵢ at any level, or more than 1.
    """
    if isinstance(sigmas, Tracer):
        return
    levels = [float(sigma) for sigma in sigmas]
    ratio = min((after / before for before, after in itertools.pairwise(levels)), default=1.0)
    if not 1.0 - ratio - 1e-6 <= eta <= 1.0:
        raise ValueError(
            f"eta={eta}: consistent annealed sampling over these levels accepts {1.0 - ratio:.6g} to 1; "
            "change eta or use more levels"
        )
