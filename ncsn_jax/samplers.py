"""Samplers of the variance-exploding process, each for a single chain: `jax.vmap` runs many.

They share one process, whose time is the noise level itself: x_σ = x₀ + σ z. It has these forms:

- from a level σ up to τ: x + √(τ² − σ²) z (`diffuse`);
- its time reversal: dx = −2σ s(x, σ) dσ + √(2σ) dw, while σ falls (Song et al. 2021, equation 6);
- the probability flow, which has the same distribution at every level: dx/dσ = −σ s(x, σ) (equation 13).

The variance-exploding SDE of Song et al. 2021 is this process at σ(t) = σ_L (σ₁/σ_L)ᵗ; Karras et al. 2022
use the form given here. A sampler descends through the levels σ₁ > … > σ_L; one step takes it from one level
to the next. It starts at x ~ p_σ₁, which is about N(0, σ₁² I) if σ₁ is far larger than the data.

All except `consistent_annealed_sampling` evaluate the score between the levels of the training, so they
refuse a network that embeds discrete levels.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jaxtyping import Float

from ncsn_jax.dtypes import root, scalars, wide, widened
from ncsn_jax.langevin import denoised, langevin_step
from ncsn_jax.typing import PRNGKey, Scalar, ScoreFn, Sigmas

Event = Float[Array, "*event"]

Predictor = Callable[..., Event]
"""A function from (key, score_fn, x, sigma, next_sigma, *, temperature) to the next x."""


def diffuse(key: PRNGKey, x: Event, sigma: Scalar, next_sigma: Scalar, *, temperature: Scalar = 1.0) -> Event:
    """Raise the noise level of x from σ to σ', x + √(temperature (σ'² − σ²)) z with z ~ N(0, I).

    Args:
      key: the key of z.
      x: the state at σ, shape `(*event,)`.
      sigma: σ; 0 for clean data.
      next_sigma: σ' ≥ σ.
      temperature: the variance of z.

    Returns:
      The state at σ', shape `(*event,)`.
    """
    sigma, next_sigma, temperature = scalars(x, sigma, next_sigma, temperature)
    # A product is exactly 0 for equal levels; a fused difference of squares may be negative.
    std = root(temperature * (next_sigma - sigma) * (next_sigma + sigma))
    return (x + std * jax.random.normal(key, x.shape, x.dtype)).astype(x.dtype)


def flow(score_fn: ScoreFn, x: Event, sigma: Scalar) -> Event:
    """The velocity of the probability flow, dx/dσ = −σ s(x, σ), shape `(*event,)`.

    Reference:
      Song et al. 2021 (arXiv:2011.13456), equation 13; Karras et al. 2022 (arXiv:2206.00364), equation 1.
    """
    (sigma,) = scalars(x, sigma)
    return (-sigma * score_fn(x, sigma)).astype(x.dtype)


# --- consistent annealed sampling ---


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
    levels = _levels(x, sigmas)
    if eta is not None:
        check_eta(eta, sigmas)

    def step(key, x, sigma, next_sigma):
        return consistent_step(
            key, score_fn, x, sigma, next_sigma, eta=eta, temperature=temperature, denoise=denoise
        )

    return descend(key, step, x, jnp.append(levels, 0.0))


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


# --- predictor-corrector ---


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
) -> Event:
    """Take one step of `predictor_corrector`: predict the state at the next level, then correct it there."""
    predictor_key, corrector_key = jax.random.split(key)
    x = predictor(predictor_key, score_fn, x, sigma, next_sigma, temperature=temperature)

    def correct(x, m):
        key = jax.random.fold_in(corrector_key, m)
        return langevin_corrector(key, score_fn, x, next_sigma, snr=snr, temperature=temperature), None

    return jax.lax.scan(correct, x, jnp.arange(corrector_steps))[0]


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
      score_fn: s(x, σ), for any σ.
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
      ValueError: if the score comes from a network of discrete levels.

    Reference:
      Song et al. 2021 (arXiv:2011.13456), Algorithm 2.
    """
    require_any_sigma(score_fn)
    levels = _levels(x, sigmas)

    def step(key, x, sigma, next_sigma):
        return predictor_corrector_step(
            key,
            score_fn,
            x,
            sigma,
            next_sigma,
            predictor=predictor,
            corrector_steps=corrector_steps,
            snr=snr,
            temperature=temperature,
        )

    x = descend(key, step, x, levels)
    return denoised(score_fn, x, levels[-1]) if denoise else x


# --- Heun's method ---


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

    Reference:
      Karras et al. 2022 (arXiv:2206.00364), Algorithm 2, lines 4 to 12, for σ(t) = t.
    """
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
    require_any_sigma(score_fn)
    levels = _levels(x, sigmas)
    churn = churn_of(s_churn, len(levels))

    def step(key, x, sigma, next_sigma):
        return heun_step(
            key, score_fn, x, sigma, next_sigma, churn=churn, s_min=s_min, s_max=s_max, s_noise=s_noise
        )

    return descend(key, step, x, jnp.append(levels, 0.0))


def churn_of(s_churn: float, num_steps: int) -> float:
    """γ = min(S_churn/N, √2 − 1), the share by which each of N steps raises σ (Karras et al. 2022)."""
    return min(s_churn / num_steps, math.sqrt(2.0) - 1.0)


# --- the probability flow ---


def probability_flow(
    score_fn: ScoreFn,
    x: Event,
    start: Scalar,
    stop: Scalar,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    solver: Any = None,
    stepsize_controller: Any = None,
    max_steps: int = 4096,
) -> Event:
    """Follow the probability flow dx/dσ = −σ s(x, σ) from one noise level to another, with diffrax.

    Downwards it decodes: x ~ p_start becomes a sample of p_stop. Upwards it encodes. Each direction undoes
    the other, up to the solver's tolerance. The solver's time is log σ.

    Args:
      score_fn: s(x, σ), for any σ.
      x: the state at `start`, shape `(*event,)`.
      start: the first σ, positive.
      stop: the last σ, positive.
      rtol: the relative tolerance of a step; values below 1e-5 gain little in float32.
      atol: the absolute tolerance, in the units of x.
      solver: a diffrax solver, `diffrax.Tsit5()` if None.
      stepsize_controller: a diffrax controller, instead of the adaptive one with these tolerances;
        `diffrax.StepTo(ts)` takes fixed steps, with ts in log σ.
      max_steps: the number of steps after which the solver gives up.

    Returns:
      The state at `stop`, shape `(*event,)`; NaN if the solver gave up or a σ isn't positive.

    Raises:
      ValueError: if the score comes from a network of discrete levels.

    Reference:
      Song et al. 2021 (arXiv:2011.13456), section 4.3 and appendix D.4.
    """
    require_any_sigma(score_fn)
    return follow(
        lambda x, sigma: flow(score_fn, x, sigma),
        x,
        start,
        stop,
        rtol=rtol,
        atol=atol,
        solver=solver,
        stepsize_controller=stepsize_controller,
        max_steps=max_steps,
    )


# --- shared functions ---


def descend(
    key: PRNGKey,
    step: Callable[[PRNGKey, Event, Scalar, Scalar], Event],
    x: Event,
    sigmas: Float[Array, " num_scales"],
) -> Event:
    """Descend the noise levels, x ← step(keyᵢ, x, σᵢ, σᵢ₊₁), where keyᵢ is the key's `fold_in(i)`."""

    def body(x, numbered):
        i, sigma, next_sigma = numbered
        return step(jax.random.fold_in(key, i), x, sigma, next_sigma), None

    steps = (jnp.arange(len(sigmas) - 1), sigmas[:-1], sigmas[1:])
    return jax.lax.scan(body, x, steps)[0]


def follow(
    velocity: Callable[[Any, Float[Array, ""]], Any],
    y: Any,
    start: Scalar,
    stop: Scalar,
    *,
    rtol: float,
    atol: float,
    solver: Any,
    stepsize_controller: Any,
    max_steps: int,
) -> Any:
    """Solve dy/dσ = f(y, σ) from one noise level to another, with diffrax in the time log σ.

    Args:
      velocity: f, from y and σ to a pytree like y.
      y: the state at `start`, an array or a pytree of arrays.
      start: the first σ, positive.
      stop: the last σ, positive.
      rtol: the relative tolerance, as in `probability_flow`.
      atol: the absolute tolerance, in the units of y.
      solver: as in `probability_flow`.
      stepsize_controller: as in `probability_flow`.
      max_steps: as in `probability_flow`.

    Returns:
      y at `stop`, in its types; NaN if the solver gave up or a σ isn't positive. It is computed in at least
      float32.
    """
    import diffrax  # imported here because it takes longer than the whole package

    def in_log_sigma(log_sigma, y, args):
        sigma = jnp.exp(log_sigma)
        return jax.tree.map(lambda rate: sigma.astype(rate.dtype) * rate, velocity(y, sigma))

    narrow = jax.tree.map(jnp.result_type, y)
    y = jax.tree.map(widened, y)
    start, stop = (jnp.asarray(sigma, wide(*jax.tree.leaves(y))) for sigma in (start, stop))
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(in_log_sigma),
        solver or diffrax.Tsit5(),
        t0=jnp.log(start),
        t1=jnp.log(stop),
        dt0=None,
        y0=y,
        stepsize_controller=stepsize_controller or diffrax.PIDController(rtol=rtol, atol=atol),
        max_steps=max_steps,
        throw=False,  # an exception would stop all chains of a batch
    )
    assert solution.ys is not None  # by default, the last state is saved
    # Given a NaN, diffrax takes no step and reports success.
    solved = (solution.result == diffrax.RESULTS.successful) & (start > 0) & (stop > 0)
    return jax.tree.map(
        lambda saved, own: jnp.where(solved, saved[0], jnp.nan).astype(own), solution.ys, narrow
    )


def require_any_sigma(score_fn: ScoreFn) -> None:
    """Refuse the score of a network that embeds discrete levels.

    Raises:
      ValueError: if the network embeds levels: its score is piecewise constant in σ, without a useful
        derivative in σ.
    """
    levels = getattr(score_fn, "sigmas", None)
    if levels is not None:
        raise ValueError(
            f"this sampler needs scores at any σ, found a network of {len(levels)} discrete levels; "
            "accepted: NCSNv2, MLP, an exact score"
        )


def _levels(x: Event, sigmas: Sigmas) -> Float[Array, " num_scales"]:
    (levels,) = scalars(x, sigmas)
    if levels.ndim != 1 or not levels.size:
        raise ValueError(f"sigmas must be a row of levels, found the shape {levels.shape}")
    return levels
