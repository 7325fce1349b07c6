"""The score-matching objectives, each for a single example.

Every function returns one unreduced scalar: `jax.vmap` it over examples (and their keys) and take the mean.
The ½ of the papers is kept, so that the gradient of a loss in s(x) is the plain residual.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ncsn_jax.typing import PRNGKey, Scalar, ScoreFn


def explicit_score_matching(score_fn, x: Float[Array, "*event"], target: Float[Array, "*event"]):
    """The squared distance ½‖s(x) − t‖² of a score from its target.

    Args:
      score_fn: s, from x to an array of its shape.
      x: the example, shape `(*event,)`.
      target: t, the score that s(x) should be, shape `(*event,)`.

    Returns:
      The loss, a scalar.

    Reference:
      Hyvärinen 2005, equation 2; Song & Ermon 2019 (arXiv:1907.05600), section 2.1.
    """
    return 0.5 * jnp.sum(jnp.square(score_fn(x) - target))


def denoising_score_matching(
    key: PRNGKey,
    score_fn: ScoreFn,
    x: Float[Array, "*event"],
    sigma: Scalar,
    *,
    power: float = 2.0,
) -> Float[Array, ""]:
    """Denoising score matching, ½ σ^power ‖s(x + σz, σ) + z/σ‖² with z ~ N(0, I).

    The target −z/σ = (x − x̃)/σ² is the score of the perturbation x̃ = x + σz given x. In the mean over x and z
    the minimiser is the score of the perturbed data.

    Args:
      key: the example's key.
      score_fn: s(x, σ).
      x: the clean example, shape `(*event,)`.
      sigma: σ, the standard deviation of the noise, in the units of x.
      power: the exponent of the weight λ(σ) = σ^power. The paper's 2 gives every level the same share of
        the loss.

    Returns:
      The loss, a scalar.

    Reference:
      Vincent 2011; Song & Ermon 2019 (arXiv:1907.05600), equations 2 and 5.
    """
    noise = jax.random.normal(key, x.shape, x.dtype)
    weight = jnp.asarray(sigma, x.dtype) ** power
    return weight * explicit_score_matching(
        lambda perturbed: score_fn(perturbed, sigma), x + sigma * noise, -noise / sigma
    )


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

    Reference:
      Song & Ermon 2019 (arXiv:1907.05600), equation 6.
    """
    level_key, noise_key = jax.random.split(key)
    sigma = jax.random.choice(level_key, sigmas)
    return denoising_score_matching(noise_key, score_fn, x, sigma, power=power)
