"""Predictor-corrector sampling (Song et al. 2021), for a single chain."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ncsn_jax.dtypes import scalars
from ncsn_jax.samplers.langevin import denoising, langevin_step, repeat
from ncsn_jax.samplers.process import Event, diffuse, require_any_sigma
from ncsn_jax.samplers.sampler import Sampler, run
from ncsn_jax.typing import PRNGKey, Scalar, ScoreFn, Sigmas

Predictor = Callable[..., Event]
"""A function from (key, score_fn, x, sigma, next_sigma, *, temperature) to the next x."""


def reverse_diffusion(
    key: PRNGKey,
    score_fn: ScoreFn,
    x: Event,
    sigma: Scalar,
    next_sigma: Scalar,
    *,
    temperature: Scalar = 1.0,
) -> Event:
    """The reverse diffusion predictor, x + (σᵢ² − σᵢ₊₁²) s(x, σᵢ) + √(σᵢ² − σᵢ₊₁²) z.

    Args:
      key: the key of this step.
      score_fn: s(x, σ).
      x: the state at σᵢ, shape `(*event,)`.
      sigma: σᵢ.
      next_sigma: σᵢ₊₁ < σᵢ.
      temperature: the variance of z.

    Returns:
      The state at σᵢ₊₁, shape `(*event,)`.

    Reference:
      Song et al. 2021 (arXiv:2011.13456), Algorithm 2, lines 4 to 6, and equation 46.
    """
    sigma, next_sigma = scalars(x, sigma, next_sigma)
    removed = sigma**2 - next_sigma**2
    drifted = (x + removed * score_fn(x, sigma)).astype(x.dtype)
    return diffuse(key, drifted, next_sigma, sigma, temperature=temperature)


def euler_maruyama(
    key: PRNGKey,
    score_fn: ScoreFn,
    x: Event,
    sigma: Scalar,
    next_sigma: Scalar,
    *,
    temperature: Scalar = 1.0,
) -> Event:
    """The Euler-Maruyama predictor of the reverse SDE, x + g² Δt s(x, σᵢ) + √(g² Δt) z.

    With σ(t) = σ_L (σ₁/σ_L)ᵗ, g² Δt is 2σᵢ² log(σᵢ/σᵢ₊₁). It is more than σᵢ² − σᵢ₊₁², the decrease of the
    noise variance; the two agree in the limit of many levels.

    Args:
      key: the key of this step.
      score_fn: s(x, σ).
      x: the state at σᵢ, shape `(*event,)`.
      sigma: σᵢ.
      next_sigma: σᵢ₊₁ < σᵢ, positive.
      temperature: the variance of z.

    Returns:
      The state at σᵢ₊₁, shape `(*event,)`.

    Reference:
      Song et al. 2021 (arXiv:2011.13456), section 4.1 and appendix D, with the g of equation 30.
    """
    sigma, next_sigma = scalars(x, sigma, next_sigma)
    removed = 2.0 * sigma**2 * jnp.log(sigma / next_sigma)
    drifted = (x + removed * score_fn(x, sigma)).astype(x.dtype)
    return diffuse(key, drifted, 0.0, jnp.sqrt(removed), temperature=temperature)


def langevin_corrector(
    key: PRNGKey, score_fn: ScoreFn, x: Event, sigma: Scalar, *, snr: Scalar, temperature: Scalar = 1.0
) -> Event:
    """Take a Langevin step at one level, with its size set by a signal-to-noise ratio.

    The step is x + ε s(x, σ) + √(2ε) z with ε = 2 (rσ)². The paper's ε is 2 (r ‖z‖/‖s(x, σ)‖)², with both
    norms averaged over the batch. In many dimensions ‖z‖/‖s(x, σ)‖ is near σ if the data are finer than the
    noise. Here σ replaces this ratio: a sample must not depend on its batch, and a step size that depends on
    the chain's own x would draw from a distribution other than p_σ.

    Args:
      key: the key of this step.
      score_fn: s(x, σ).
      x: the state at σ, shape `(*event,)`.
      sigma: σ.
      snr: r, the ratio of the drift's norm to the noise's where ‖z‖/‖s(x, σ)‖ is σ.
      temperature: the variance of z.

    Returns:
      The next state at σ, shape `(*event,)`.

    Reference:
      Song et al. 2021 (arXiv:2011.13456), Algorithm 4.
    """
    sigma, snr = scalars(x, sigma, snr)
    step_size = 2.0 * (snr * sigma) ** 2
    return langevin_step(key, score_fn(x, sigma), x, step_size, temperature=temperature)


def predictor_corrector_step(
    key: PRNGKey,
    score_fn: ScoreFn,
    x: Event,
    sigma: Scalar,
    next_sigma: Scalar,
    *,
    predictor: Predictor = reverse_diffusion,
    corrector_steps: int = 1,
    snr: Scalar = 0.16,
    temperature: Scalar = 1.0,
    levels: tuple[float, ...] = (),
) -> Event:
    """Take one step of `predictor_corrector`: predict the state at the next level, then correct it there.

    `levels` are all that σ may be, if they are known; a network of discrete levels has to embed them.

    Raises:
      ValueError: if the score comes from a network of other discrete levels.
    """
    require_any_sigma(score_fn, levels)
    predictor_key, corrector_key = jax.random.split(key)
    x = predictor(predictor_key, score_fn, x, sigma, next_sigma, temperature=temperature)

    def correct(key, x):
        return langevin_corrector(key, score_fn, x, next_sigma, snr=snr, temperature=temperature)

    return repeat(corrector_key, correct, x, corrector_steps)


def predictor_corrector(
    key: PRNGKey,
    score_fn: ScoreFn,
    x: Event,
    sigmas: Sigmas,
    *,
    predictor: Predictor = reverse_diffusion,
    corrector_steps: int = 1,
    snr: Scalar = 0.16,
    temperature: Scalar = 1.0,
    denoise: bool = False,
) -> Event:
    """Predictor-corrector sampling of the variance-exploding SDE.

    A predictor takes the state from each level to the next, where M Langevin steps correct it:
    (L − 1)(1 + M) score evaluations.

    Args:
      key: the chain's key; step i draws from its `fold_in(i)`.
      score_fn: s(x, σ), for any σ, or for the given levels.
      x: the first state, with the noise σ₁, shape `(*event,)`.
      sigmas: the noise levels, descending, shape `(num_scales,)`.
      predictor: `reverse_diffusion`, `euler_maruyama`, or another function of the same arguments.
      corrector_steps: M; 0 for the predictor alone.
      snr: r, the corrector's signal-to-noise ratio (`langevin_corrector`).
      temperature: the variance of all noise, relative to the algorithm's.
      denoise: whether to return E[x₀ | x] = x + σ_L² s(x, σ_L) of the last state (one more evaluation).

    Returns:
      The last state, with the noise σ_L, or its denoised mean, shape `(*event,)`.

    Raises:
      ValueError: if the score comes from a network of discrete levels, and `sigmas` isn't a tuple of some.

    Reference:
      Song et al. 2021 (arXiv:2011.13456), Algorithm 2.
    """
    sampler = predictor_corrector_sampler(
        sigmas,
        predictor=predictor,
        corrector_steps=corrector_steps,
        snr=snr,
        temperature=temperature,
        denoise=denoise,
    )
    return run(key, sampler, score_fn, x)


def predictor_corrector_sampler(
    sigmas: Sigmas,
    *,
    predictor: Predictor = reverse_diffusion,
    corrector_steps: int = 1,
    snr: Scalar = 0.16,
    temperature: Scalar = 1.0,
    denoise: bool = False,
) -> Sampler:
    """Return `predictor_corrector` as a `Sampler`; the arguments are its own."""
    step = functools.partial(
        predictor_corrector_step,
        predictor=predictor,
        corrector_steps=corrector_steps,
        snr=snr,
        temperature=temperature,
        levels=sigmas if isinstance(sigmas, tuple) else (),
    )
    return Sampler(step, sigmas, denoising(sigmas[-1]) if denoise else None)
