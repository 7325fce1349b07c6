"""The log-likelihood of an example by the probability flow, and bits per dimension.

The flow dx/dσ = f(x, σ) = −σ s(x, σ) transports p_σ, and along its path the density changes by
d log p_σ(x_σ)/dσ = −∇·f(x_σ, σ). So log p at a small σ is log p at a large one, where it is known, plus the
integral of the divergence between them. With `hutchinson`'s probes an image doesn't need D passes:

    def bits(key, x):
        log_p = log_likelihood(score_fn, x, 0.01, 50.0, divergence=hutchinson(key, x))
        return bits_per_dim(log_p, x.size, num_values=256)

    jax.vmap(bits)(keys, images)
"""

import math
from collections.abc import Callable
from typing import Literal, Unpack

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.stats import norm
from jaxtyping import Float

from ncsn_jax import losses
from ncsn_jax.dtypes import floating, widened
from ncsn_jax.losses import Field
from ncsn_jax.samplers import SolverOptions, flow, follow, require_any_sigma
from ncsn_jax.typing import PRNGKey, Scalar, ScoreFn

Event = Float[Array, "*event"]

Divergence = Callable[[Field, Event], Float[Array, ""]]
"""A function from a vector field f and x to ∇·f(x), or to an unbiased estimate of it."""


def log_likelihood(
    score_fn: ScoreFn,
    x: Event,
    start: Scalar,
    stop: Scalar,
    *,
    divergence: Divergence = losses.divergence,
    prior_log_density: Callable[[Event], Float[Array, ""]] | None = None,
    **options: Unpack[SolverOptions],
) -> Float[Array, ""]:
    """The log-density of the probability flow, log p_start(x) = log p_stop(x_stop) + ∫ ∇·f(x_σ, σ) dσ.

    The integral runs from `start` to `stop` along the flow through x, with f = −σ s(x, σ). The result is the
    density, at x, of the prior transported by `probability_flow`; it is p_start(x) if the score is exact.
    Everything is computed in forward mode.

    The prior N(0, stop² I) ignores the data. At a single x its error is about ‖E x₀‖/stop nats, for all
    dimensions together and of either sign: on a mixture with ‖E x₀‖ = 2.5, a root mean square of 0.05 at
    stop = 50 and 0.003 at 1000. If the levels end below the data's spread, the error is much larger. The
    result is a density in any case: the density of the flow's samples from N(0, stop² I).

    Args:
      score_fn: s(x, σ), for any σ.
      x: the example, shape `(*event,)`; D is its number of elements.
      start: the σ of the result, small and positive.
      stop: the σ of the prior.
      divergence: `ncsn_jax.losses.divergence`, exact, with D Jacobian-vector products per evaluation, or the
        result of `hutchinson`, for images. It is given the linearization of f at x, which has the same
        divergence, so the score is evaluated once for all directions.
      prior_log_density: log p_stop, from the state at `stop` to a scalar; N(0, stop² I) if None.
      options: the solver's settings, `SolverOptions`; atol is in the units of x and in nats.

    Returns:
      log p_start(x) in nats, a scalar; NaN if the solver gave up.

    Raises:
      ValueError: if the score comes from a network of discrete levels, or x has no floating type.

    Reference:
      Song et al. 2021 (arXiv:2011.13456), section 4.3 and appendix D.2; Chen et al. 2018 (arXiv:1806.07366),
      theorem 1; Grathwohl et al. 2019 (arXiv:1810.01367).
    """
    require_any_sigma(score_fn)
    dtype = floating(x).dtype
    x = widened(x)

    def velocity(state, sigma):
        f, jacobian_times = jax.linearize(lambda x: flow(score_fn, x, sigma), state[0])
        return f, divergence(jacobian_times, state[0])

    last, integral = follow(velocity, (x, jnp.zeros((), x.dtype)), start, stop, **options)
    if prior_log_density is None:
        log_prior = jnp.sum(norm.logpdf(last, 0.0, jnp.asarray(stop, x.dtype)))
    else:
        log_prior = prior_log_density(last)
    return (log_prior + integral).astype(dtype)


def hutchinson(
    key: PRNGKey,
    x: Event,
    *,
    num_probes: int = 1,
    projection: Literal["rademacher", "gaussian"] = "rademacher",
) -> Divergence:
    """Hutchinson's estimate of a divergence, the mean of vᵀ∇f(x)v over M probes v with E[vvᵀ] = I.

    The probes are drawn once, here, and an integral over a flow uses them throughout. So an adaptive solver
    integrates a smooth function, and the integral is unbiased because its integrand is. If the Jacobian J is
    symmetric, as for a score, the variance is 2/M times the sum of the squares of all its elements along
    `gaussian` probes, and of its off-diagonal elements along `rademacher` ones.

    Args:
      key: the example's key.
      x: an array with the shape and type of the probes, `(*event,)`.
      num_probes: M, the number of Jacobian-vector products per evaluation.
      projection: the distribution of v: `rademacher` (signs ±1) or `gaussian` (N(0, I)).

    Returns:
      A function from a vector field and x to the estimate.

    Raises:
      ValueError: if the projection is unknown, or there are no probes.

    Reference:
      Hutchinson 1990; Grathwohl et al. 2019 (arXiv:1810.01367), section 3.1.
    """
    if num_probes < 1:
        raise ValueError(f"num_probes must be at least 1, found {num_probes}")
    draw = {"rademacher": jax.random.rademacher, "gaussian": jax.random.normal}.get(projection)
    if draw is None:
        raise ValueError(f"projection must be rademacher or gaussian, found {projection!r}")
    probes = draw(key, (num_probes, *x.shape), floating(x).dtype)

    def estimate(fn, x):
        def along(v):
            v = v.astype(x.dtype)  # a solver may compute in a wider type than the probes'
            return jnp.sum(v * jax.jvp(fn, (x,), (v,))[1])

        return jnp.mean(jax.vmap(along)(probes))

    return estimate


def bits_per_dim(log_likelihood: Scalar, dim: int, *, num_values: int | None = None) -> Float[Array, ""]:
    """Bits per dimension of discrete data that were dequantized uniformly, or of a density.

    For x = (k + u)/n with u ~ U[0, 1)ᴰ, the model's probability of k is the mass of its cell of side 1/n,
    P(k) = ∫_cell p(x) dx = n⁻ᴰ E_u[p(x)], and by Jensen's inequality

        −log₂ P(k) ≤ E_u[−log₂ p(x)] + D log₂ n.

    The result is the right side at one u, divided by D. It is a bound in the mean over u, and so in the mean
    over a test set; at one u it may be less than −log₂ P(k). An unbiased estimate of log p (`hutchinson`)
    keeps the bound in the mean. The errors of a solver are not bounded. For data dequantized in another way,
    or not at all, the result bounds nothing: at single points a density may be arbitrarily high.

    Args:
      log_likelihood: log p(x) in nats, of x in [0, 1]; for a model of T(x), log p(T(x)) plus
        `log_jacobian(T, x)`.
      dim: D.
      num_values: n, the number of values of an element; None for real numbers, whose −log₂ p(x)/D depends
        on their units and may be negative.

    Returns:
      Bits per dimension, a scalar.

    Reference:
      Theis et al. 2016 (arXiv:1511.01844), section 3.1.

    >>> float(bits_per_dim(0.0, 64, num_values=256))  # uniform on [0, 1]
    8.0
    """
    offset = 0.0 if num_values is None else math.log2(num_values)
    return -jnp.asarray(log_likelihood) / (dim * math.log(2.0)) + offset


def log_jacobian(forward: Callable[[Event], Event], x: Event) -> Float[Array, ""]:
    """The log-determinant Σᵢ log |T'(xᵢ)| of an elementwise map's Jacobian: log p(x) = log p_T(T(x)) + this.

    Args:
      forward: T, which maps each element by itself: the `forward` of one of `ncsn_jax.transforms`.
      x: the point before the map, shape `(*event,)`.

    Returns:
      The sum in nats, a scalar: 0 for the identity, D log 2 for 2x − 1.
    """
    x = floating(x)
    slopes = jax.jvp(forward, (x,), (jnp.ones_like(x),))[1]
    return jnp.sum(jnp.log(jnp.abs(slopes)))
