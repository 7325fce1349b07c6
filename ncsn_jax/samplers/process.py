"""The variance-exploding process that samplers run along."""

import jax
from jax import Array
from jaxtyping import Float

from ncsn_jax.dtypes import root, scalars
from ncsn_jax.typing import PRNGKey, Scalar, ScoreFn

Event = Float[Array, "*event"]


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


def require_any_sigma(score_fn: ScoreFn, levels: tuple[float, ...] = ()) -> None:
    """Refuse the score of a network that embeds discrete levels, other than the given ones.

    Args:
      score_fn: the score.
      levels: the only noise levels at which the score is needed, if they are known.

    Raises:
      ValueError: if the network embeds other levels: its score is piecewise constant in σ, without a useful
        derivative in σ.
    """
    own = getattr(score_fn, "sigmas", None)
    if own is not None and not (levels and set(map(float, levels)) <= set(own)):
        raise ValueError(
            f"this sampler needs scores at any σ, found a network of {len(own)} discrete levels; "
            "accepted: NCSNv2, MLP, an exact score (the predictor-corrector also takes a tuple of the levels)"
        )
