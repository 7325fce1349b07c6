"""The log-likelihood of an example by the probability flow, and bits per dimension.

The flow dx/dσ = f(x, σ) = −σ s(x, σ) carries p_σ along, and along its way the density changes by
d log p_σ(x_σ)/dσ = −∇·f(x_σ, σ). So log p at a small σ is what it is at a large one, where it is known,
and the integral of the divergence between them. With `hutchinson`'s probes an image takes no D passes:

    def bits(key, x):
        log_p = log_likelihood(score_fn, x, 0.01, 50.0, divergence=hutchinson(key, x))
        return bits_per_dim(log_p, x.size, num_values=256)

    jax.vmap(bits)(keys, images)
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.stats import norm
from jaxtyping import Float

from ncsn_jax import losses
from ncsn_jax.dtypes import floating, widened
from ncsn_jax.losses import VectorField
from ncsn_jax.samplers import flow, follow, require_any_sigma
from ncsn_jax.typing import PRNGKey, Scalar, ScoreFn

Event = Float[Array, "*event"]

Divergence = Callable[[VectorField, Event], Float[Array, ""]]
"""From a vector field f and x to ∇·f(x), or to an unbiased estimate of it."""


def log_likelihood(
    score_fn: ScoreFn,
    x: Event,
    start: Scalar,
    stop: Scalar,
    *,
    divergence: Divergence = losses.divergence,
    prior_log_density: Callable[[Event], Float[Array, ""]] | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    solver: Any = None,
    stepsize_controller: Any = None,
    max_steps: int = 4096,
) -> Float[Array, ""]:
    """The log-density of the probability flow, log p_start(x) = log p_stop(x_stop) + ∫ ∇·f(x_σ, σ) dσ.

    The integral goes from `start` to `stop` along the flow through x, with f = −σ s(x, σ). It is the density
    of what `probability_flow` makes of the prior, at x, which is p_start(x) if the score is exact. All of it
    is in forward mode.

    As a prior, N(0, stop² I) leaves out the data, and is off by about ‖E x₀‖/stop nats at a single x, of all
    its dimensions together, on either side: on a mixture with ‖E x₀‖ = 2.5 by a root mean square of 0.05 at
    stop = 50 and 0.003 at 1000. Where the levels end below the data's spread it is off by much more. Yet what
    it gives is a density in any case: that of the flow's samples from N(0, stop² I).

    Args:
      score_fn: s(x, σ), for any σ.
      x: the example, shape `(*event,)`; D is its number of elements.
      start: σ where the density is wanted, small and positive.
      stop: σ where it is known.
      divergence: `ncsn_jax.losses.divergence`, exact, D Jacobian-vector products an evaluation; or what
        `hutchinson` returns, for images. It is given the linearization of f at x, whose divergence is f's:
        then the score is evaluated once for all directions.
      prior_log_density: log p_stop, from the state at `stop` to a scalar; N(0, stop² I) if None.
      rtol: as all that follow, of `probability_flow`.
      atol: in the units of x, and in nats.
      solver: one of diffrax's.
      stepsize_controller: one of diffrax's.
      max_steps: after how many steps it gives up.

    Returns:
      log p_start(x) in nats, a scalar; NaN if the solver gave up.

    Raises:
      ValueError: if the score is of a network of discrete levels, or x has no floating type.

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

    last, integral = follow(
        velocity,
        (x, jnp.zeros((), x.dtype)),
        start,
        stop,
        rtol=rtol,
        atol=atol,
        solver=solver,
        stepsize_controller=stepsize_controller,
        max_steps=max_steps,
    )
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

    The probes are drawn here, once: an integral over a flow sees the same ones all along. So an adaptive
    solver has a smooth function to integrate, and the integral is unbiased as its integrand is. Where the
    Jacobian J is symmetric, as a score's is, the variance is 2/M times the sum of the squares of all its
    elements along `gaussian` probes, and of those off the diagonal along `rademacher` ones.

    Args:
      key: the example's key.
      x: an array of the shape and type of the probes, `(*event,)`.
      num_probes: M, Jacobian-vector products an evaluation.
      projection: what v is drawn from: `rademacher` (signs ±1) or `gaussian` (N(0, I)).

    Returns:
      The function of a vector field and x.

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
            v = v.astype(x.dtype)  # a solver may be in a wider type than the probes
            return jnp.sum(v * jax.jvp(fn, (x,), (v,))[1])

        return jnp.mean(jax.vmap(along)(probes))

    return estimate


def bits_per_dim(log_likelihood: Scalar, dim: int, *, num_values: int | None = None) -> Float[Array, ""]:
    """Bits per dimension: of discrete data that were dequantized uniformly, or of a density.

    For x = (k + u)/n with u ~ U[0, 1)ᴰ, the model's probability of k is the mass of its cell of side 1/n,
    P(k) = ∫_cell p(x) dx = n⁻ᴰ E_u[p(x)], and by Jensen's inequality

        −log₂ P(k) ≤ E_u[−log₂ p(x)] + D log₂ n.

    This is the right side at one u, over D. It is a bound in the mean over u, as in that over a test set; at
    one u it may be less than −log₂ P(k). An unbiased estimate of log p (`hutchinson`) keeps the bound in the
    mean. The errors of a solver are not bounded. Of data dequantized in another way, or not at all, it bounds
    nothing: at single points a density may be as high as it likes.

    Args:
      log_likelihood: log p(x) in nats, of x in [0, 1]: where the model is of T(x), log p(T(x)) and
        `log_jacobian(T, x)`.
      dim: D.
      num_values: n, how many values an element can have; None for real numbers, whose −log₂ p(x)/D depends
        on their units, and may be negative.

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
      forward: T, which maps each element by itself: the `forward` of one of `ncsn_jax.data.TRANSFORMS`.
      x: where, before the map, shape `(*event,)`.

    Returns:
      The sum in nats, a scalar: 0 for the identity, D log 2 for 2x − 1.
    """
    x = floating(x)
    slopes = jax.jvp(forward, (x,), (jnp.ones_like(x),))[1]
    return jnp.sum(jnp.log(jnp.abs(slopes)))
