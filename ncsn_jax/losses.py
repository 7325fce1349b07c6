"""Score-matching objectives, each for a single example.

Every function returns one unreduced scalar: `jax.vmap` it over examples (and their keys) and take the mean.
The ½ of the papers is kept, so the gradient of explicit score matching in s(x) is the plain residual.

`explicit_score_matching`, `implicit_score_matching` and `sliced_score_matching` take no noise level: at a
level σ, pass them x + σz and `lambda x: score_fn(x, sigma)`. docs/score_matching.md derives each objective
from the one before it and checks it numerically.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jaxtyping import Float

from ncsn_jax.dtypes import floating, wide, widened
from ncsn_jax.typing import PRNGKey, Scalar, ScoreFn

Field = Callable[[Float[Array, "*event"]], Float[Array, "*event"]]
"""s(x): a score without a noise level, or with σ bound."""

Projection = Literal["rademacher", "gaussian", "sphere"]
"""Distribution of the directions v of sliced score matching; E[vvᵀ] = I for each."""


def explicit_score_matching(
    field: Field, x: Float[Array, "*event"], target: Float[Array, "*event"]
) -> Float[Array, ""]:
    """The squared distance ½‖s(x) − t‖² of a score from its target.

    Args:
      field: s, from x to an array of the same shape.
      x: the example, shape `(*event,)`.
      target: t, the score that s(x) should be, shape `(*event,)`.

    Returns:
      The loss, a scalar.

    Raises:
      ValueError: if s(x) or the target differs from x in shape, or x has no floating type.

    Reference:
      Hyvärinen 2005, equation 2; Song & Ermon 2019 (arXiv:1907.05600), section 2.1.
    """
    x = floating(x)
    if jnp.shape(target) != jnp.shape(x):
        raise ValueError(f"the target must have the shape of x, {jnp.shape(x)}, found {jnp.shape(target)}")
    return _half_square(_checked(field, x)(x) - target).astype(x.dtype)


def implicit_score_matching(field: Field, x: Float[Array, "*event"]) -> Float[Array, ""]:
    """Hyvärinen's objective, tr ∇s(x) + ½‖s(x)‖²: explicit score matching without the data's score.

    Its mean over x ~ p is ½E‖s − ∇log p‖² minus the constant ½E‖∇log p‖², if p and s are smooth, both
    expectations are finite, and the flux of p·s through a sphere vanishes as its radius grows. It is exact,
    and costs D Jacobian-vector products for D numbers in x; for images, use `sliced_score_matching`.

    Args:
      field: s, from x to an array of the same shape.
      x: the example, shape `(*event,)`.

    Returns:
      The loss, a scalar.

    Raises:
      ValueError: if s(x) differs from x in shape, or x has no floating type.

    Reference:
      Hyvärinen 2005, theorem 1; Song & Ermon 2019 (arXiv:1907.05600), equation 1.
    """
    x = floating(x)
    field = _checked(field, x)
    return (divergence(field, x) + _half_square(field(x))).astype(x.dtype)


def divergence(fn: Field, x: Float[Array, "*event"]) -> Float[Array, ""]:
    """The divergence ∇·f = tr ∇f of a vector field, in forward mode: D Jacobian-vector products.

    Args:
      fn: f, from x to an array of the same shape.
      x: the point, shape `(*event,)`; D is its number of elements.

    Returns:
      Σᵢ ∂fᵢ/∂xᵢ, a scalar.
    """
    x = floating(x)
    return jnp.trace(jax.jacfwd(fn)(x).reshape(x.size, x.size))


def sliced_score_matching(
    key: PRNGKey,
    field: Field,
    x: Float[Array, "*event"],
    *,
    num_projections: int = 1,
    projection: Projection = "rademacher",
    variance_reduced: bool = True,
) -> Float[Array, ""]:
    """Sliced score matching: implicit score matching with the trace estimated along random directions v.

    It is the mean over M directions of vᵀ∇s(x)v + ½(vᵀs(x))², or of vᵀ∇s(x)v + ½‖s(x)‖² if
    `variance_reduced`. Because E[vvᵀ] = I, both are unbiased estimates of `implicit_score_matching`, at the
    cost of M Jacobian-vector products. The second has the smaller variance, except where the terms of the
    first cancel (in one dimension, along Gaussian v, at a Gaussian's score).

    Args:
      key: the example's key.
      field: s, from x to an array of the same shape.
      x: the example, shape `(*event,)`.
      num_projections: M.
      projection: the distribution of v: `rademacher` (signs ±1), `gaussian` (N(0, I)) or `sphere` (uniform
        on the sphere of radius √D).
      variance_reduced: whether to replace ½(vᵀs)² by its expectation ½‖s‖².

    Returns:
      The loss, a scalar.

    Raises:
      ValueError: if the projection is unknown, M < 1, s(x) differs from x in shape, or x has no floating
        type.

    Reference:
      Song, Garg, Shi & Ermon 2019 (arXiv:1905.07088); the variance-reduced form is also Song & Ermon 2019
      (arXiv:1907.05600), equation 3.
    """
    x = floating(x)
    if num_projections < 1:
        raise ValueError(f"num_projections must be at least 1, found {num_projections}")
    draw = {
        "rademacher": jax.random.rademacher,
        "gaussian": jax.random.normal,
        "sphere": _on_sphere,
    }.get(projection)
    if draw is None:
        raise ValueError(f"projection must be rademacher, gaussian or sphere, found {projection!r}")
    projections = draw(key, (num_projections, *x.shape), x.dtype)
    return projected_score_matching(field, x, projections, variance_reduced=variance_reduced)


def projected_score_matching(
    field: Field,
    x: Float[Array, "*event"],
    projections: Float[Array, "num_projections *event"],
    *,
    variance_reduced: bool = True,
) -> Float[Array, ""]:
    """`sliced_score_matching` along given directions.

    Args:
      field: s, from x to an array of the same shape.
      x: the example, shape `(*event,)`.
      projections: the directions v, shape `(num_projections, *event)`.
      variance_reduced: whether to replace ½(vᵀs)² by its expectation ½‖s‖².

    Returns:
      The loss, a scalar.

    Raises:
      ValueError: if s(x) differs from x in shape, or x has no floating type.
    """
    x = floating(x)
    field = _checked(field, x)

    def along(v):
        score, jacobian_v = jax.jvp(field, (x,), (v,))
        half_square = _half_square(score if variance_reduced else jnp.sum(widened(v * score)))
        return jnp.sum(widened(v * jacobian_v)) + half_square

    return jnp.mean(jax.vmap(along)(projections)).astype(x.dtype)


def denoising_score_matching(
    key: PRNGKey,
    score_fn: ScoreFn,
    x: Float[Array, "*event"],
    sigma: Scalar,
    *,
    power: float = 2.0,
) -> Float[Array, ""]:
    """Denoising score matching, ½ σ^power ‖s(x + σz, σ) + z/σ‖² with z ~ N(0, I).

    The target −z/σ = (x − x̃)/σ² is the score of the perturbation x̃ = x + σz given x. The minimiser of the
    mean over x and z is the score of the perturbed data.

    Args:
      key: the example's key.
      score_fn: s(x, σ).
      x: the clean example, shape `(*event,)`.
      sigma: σ, the standard deviation of the noise, in the units of x.
      power: the exponent of the weight λ(σ) = σ^power; the paper's 2 gives every level the same share of
        the loss.

    Returns:
      The loss, a scalar.

    Raises:
      ValueError: if σ isn't one positive number (its value is checked only outside of `jax.jit` and
        `jax.vmap`), s(x) differs from x in shape, or x has no floating type.

    Reference:
      Vincent 2011; Song & Ermon 2019 (arXiv:1907.05600), equations 2 and 5.
    """
    x = floating(x)
    sigma = _positive(sigma, 0, wide(x))
    noise = jax.random.normal(key, x.shape, x.dtype)
    perturbed = (x + sigma * noise).astype(x.dtype)
    score = _checked(lambda perturbed: score_fn(perturbed, sigma), x)(perturbed)
    return (sigma**power * _half_square(score + noise / sigma)).astype(x.dtype)


def ncsn_loss(
    key: PRNGKey,
    score_fn: ScoreFn,
    x: Float[Array, "*event"],
    sigmas: Float[Array, " num_scales"],
    *,
    power: float = 2.0,
) -> Float[Array, ""]:
    """Denoising score matching at one of the noise levels, drawn uniformly.

    Its mean over the levels is the noise-conditional objective (1/L) Σᵢ λ(σᵢ) ℓ(θ; σᵢ), λ(σ) = σ^power.

    Args:
      key: the example's key.
      score_fn: s(x, σ).
      x: the clean example, shape `(*event,)`.
      sigmas: the noise levels, shape `(num_scales,)`.
      power: the exponent of λ.

    Returns:
      The loss, a scalar.

    Raises:
      ValueError: if the levels aren't a row of positive numbers (their values are checked only outside of
        `jax.jit` and `jax.vmap`), s(x) differs from x in shape, or x has no floating type.

    Reference:
      Song & Ermon 2019 (arXiv:1907.05600), equation 6.
    """
    sigmas = _positive(sigmas, 1, wide(floating(x)))
    level_key, noise_key = jax.random.split(key)
    sigma = jax.random.choice(level_key, sigmas)
    return denoising_score_matching(noise_key, score_fn, x, sigma, power=power)


def _half_square(residual: Array) -> Float[Array, ""]:
    """½‖r‖² in at least float32; the sum may exceed float16's range where the weighted loss doesn't."""
    return 0.5 * jnp.sum(jnp.square(widened(residual)))


def _on_sphere(key, shape, dtype):
    """Draw `shape[0]` vectors of shape `shape[1:]`, uniform on the sphere of radius √D."""
    v = widened(jax.random.normal(key, shape, dtype))
    square = jnp.sum(jnp.square(v), axis=range(1, len(shape)), keepdims=True)
    return (v * jnp.sqrt((v.size // shape[0]) / square)).astype(dtype)


def _positive(sigma, ndim: int, dtype) -> Array:
    """Check that σ, or the levels, are positive, and return them in the given type."""
    if np.ndim(sigma) != ndim:
        expected = "one number" if ndim == 0 else "a row of numbers"
        raise ValueError(f"sigma must be {expected}, found the shape {np.shape(sigma)}")
    if not isinstance(sigma, Tracer) and not np.all(np.asarray(sigma) > 0):
        raise ValueError(f"sigma must be positive, found {sigma}")
    return jnp.asarray(sigma, dtype)


def _checked(field: Field, x: Array) -> Field:
    """Return the score with a check of its shape: a broadcast residual would give another loss."""

    def checked(x):
        score = field(x)
        shape = getattr(score, "shape", type(score).__name__)
        if shape != x.shape:
            raise ValueError(f"the score must have the shape of x, {x.shape}, found {shape}")
        return score

    return checked
