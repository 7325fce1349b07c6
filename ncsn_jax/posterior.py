"""Samplers of one image given an observation of it.

One mechanism undoes any linear loss of information. Given y = A x₀ + σ_y n and a state x = x₀ + σ z, both
noises enter the likelihood, N(y; A x, σ_y² I + σ² A Aᵀ). `posterior_score` adds the gradient of its logarithm
to the prior's score, without differentiating the network, and any sampler can use the sum as its score. As
σ → 0 the sum becomes the posterior's own score, so Langevin dynamics, which equilibrate at the last level,
draw from p(x₀ | y). Samplers that visit each level once only approximate it; docs/samplers.md says by how
much.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.scipy.sparse.linalg import cg
from jaxtyping import Bool, Float

from ncsn_jax.dtypes import floating, scalars, widened
from ncsn_jax.samplers.langevin import (
    annealed,
    annealed_langevin_dynamics,
    denoising,
    langevin_step,
)
from ncsn_jax.samplers.sampler import run
from ncsn_jax.typing import PRNGKey, Scalar, ScoreFn, Sigmas


class Mask(struct.PyTreeNode):
    """Operator of inpainting: the known pixels, with 0 for the others.

    Attributes:
      mask: true where a pixel is known, shape `(*event,)`.
    """

    mask: Any

    def __call__(self, x: Float[Array, "*event"]) -> Float[Array, "*event"]:
        return jnp.where(self.mask, x, 0.0)


class Luma(struct.PyTreeNode):
    """Operator of colorization: the grey 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601, as in Pillow)."""

    def __call__(self, x: Float[Array, "height width 3"]) -> Float[Array, "height width 1"]:
        return x @ jnp.array([[0.299], [0.587], [0.114]], x.dtype)


class BlockAverage(struct.PyTreeNode):
    """Operator of super-resolution: the averages of square blocks.

    Attributes:
      factor: the side of a block, in pixels; it must divide height and width.
    """

    factor: int = struct.field(pytree_node=False)

    def __call__(self, x: Float[Array, "height width c"]) -> Float[Array, "rows columns c"]:
        height, width, channels = x.shape
        if self.factor < 1 or height % self.factor or width % self.factor:
            raise ValueError(
                f"blocks of {self.factor}×{self.factor} pixels don't tile {height}×{width}; accepted: a "
                "factor that divides both"
            )
        blocks = x.reshape(height // self.factor, self.factor, width // self.factor, self.factor, channels)
        return jnp.mean(blocks, axis=(1, 3))


class Identity(struct.PyTreeNode):
    """Operator of denoising: x itself."""

    def __call__(self, x: Float[Array, "*event"]) -> Float[Array, "*event"]:
        return x


class Observation(struct.PyTreeNode):
    """A linear observation y = A x₀ + σ_y n, n ~ N(0, I).

    It is a pytree if the operator is one, like the operators above; wrap a plain function in
    `jax.tree_util.Partial`.

    Attributes:
      y: the observed values, real, of the shape of A x; entries that A never sees, such as unknown pixels,
        aren't read.
      operator: A, any linear function of x to real numbers.
      noise_std: σ_y, the standard deviation of the noise, in the units of y: one number.

    `pull` and `project` raise a ValueError for a noise map, for complex numbers, for a y without the shape of
    A x, and for an x without a floating type. They return NaN if a number that they read isn't finite.
    """

    y: Any
    operator: Callable[[Array], Array]
    noise_std: Any = 0.0

    def pull(self, x: Float[Array, "*event"], sigma: Scalar) -> Float[Array, "*event"]:
        """The likelihood's gradient ∇ₓ log N(y; A x, σ_y² I + σ² A Aᵀ) = Aᵀ (σ_y² I + σ² A Aᵀ)⁻¹ (y − A x).

        It equals (σ_y² I + σ² Aᵀ A)⁻¹ Aᵀ (y − A x) and is found by conjugate gradients; Aᵀ (y − A x) lies in
        the subspace on which the matrix is invertible. If the rows of A are orthogonal and of equal length,
        as for all operators of this module, one iteration is exact; other operators get up to 100.
        """
        return self._solve(x, sigma, self.noise_std)

    def project(self, x: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """The image nearest to x with A x = y, x + Aᵀ (A Aᵀ)⁻¹ (y − A x), up to rounding."""
        return x + self._solve(x, 1.0, 0.0)

    def _solve(self, x, sigma, noise_std):
        for name, value in {"noise_std": noise_std, "sigma": sigma}.items():
            if jnp.ndim(value) != 0:
                raise ValueError(f"{name} must be one number, found the shape {jnp.shape(value)}")
        dtype, x = floating(x).dtype, widened(x)
        sigma, noise_std = scalars(x, sigma, noise_std)
        seen = self.operator(x)
        if jnp.iscomplexobj(self.y) or jnp.iscomplexobj(seen):
            raise ValueError(
                "y and A x must be real, found complex numbers; observe real and imaginary parts, stacked"
            )
        if jnp.shape(self.y) != seen.shape:
            raise ValueError(f"y must have the shape of A x, {seen.shape}, found {jnp.shape(self.y)}")
        adjoint = jax.linear_transpose(self.operator, x)

        def precision(v):
            return noise_std**2 * v + sigma**2 * adjoint(self.operator(v))[0]

        (pulled,) = adjoint((self.y - seen).astype(seen.dtype))
        solution = cg(precision, pulled, maxiter=100)[0]
        # Given a NaN, the iteration would return its start, 0.
        is_finite = jnp.isfinite(pulled).all() & jnp.isfinite(sigma) & jnp.isfinite(noise_std)
        return jnp.where(is_finite, solution, jnp.nan).astype(dtype)


class PosteriorScore(struct.PyTreeNode):
    """The `ScoreFn` that `posterior_score` returns."""

    score_fn: ScoreFn
    observation: Observation

    @property
    def sigmas(self) -> tuple[float, ...] | None:
        """The discrete levels that the prior's network embeds; None if it takes any σ."""
        return getattr(self.score_fn, "sigmas", None)

    def __call__(self, x: Float[Array, "*event"], sigma: Scalar) -> Float[Array, "*event"]:
        (sigma,) = scalars(x, sigma)
        return (self.score_fn(x, sigma) + self.observation.pull(x, sigma)).astype(x.dtype)


def posterior_score(score_fn: ScoreFn, observation: Observation) -> PosteriorScore:
    """The score of x given an observation: s(x, σ) + ∇ₓ log N(y; A x, σ_y² I + σ² A Aᵀ).

    The second term assumes that x₀ and its noise z are independent given x, and that the prior of A x₀ is
    flat; as σ → 0, neither assumption is needed.

    Args:
      score_fn: s(x, σ), the prior's score.
      observation: y, A and σ_y.

    Returns:
      A `ScoreFn`, for any sampler.

    Reference:
      Jalal et al. 2021 (arXiv:2108.01368), equation 3, with the treatment of the noise common to observation
      and state by Kawar et al. 2021 (arXiv:2105.14951).
    """
    return PosteriorScore(score_fn, observation)


def sample_posterior(
    key: PRNGKey,
    score_fn: ScoreFn,
    x: Float[Array, "*event"],
    sigmas: Sigmas,
    observation: Observation,
    *,
    step_size: Scalar,
    steps_per_scale: int,
    temperature: Scalar = 1.0,
    denoise: bool = False,
) -> Float[Array, "*event"]:
    """Draw a sample of p(x₀ | y) by annealed Langevin dynamics with `posterior_score`.

    The likelihood is as steep as the prior at every level, so the largest stable step size is half as large
    as without an observation.

    Args:
      key: the chain's key.
      score_fn: s(x, σ), the prior's score.
      x: the initial state, shape `(*event,)`.
      sigmas: the noise levels, descending, shape `(num_scales,)`.
      observation: y, A and σ_y.
      step_size: ε, the step size of the last level, in squared units of x.
      steps_per_scale: T, the number of updates at each level.
      temperature: the variance of the injected noise, relative to Langevin's.
      denoise: whether to return the denoised mean of the last state. If σ_y = 0, a state agrees with y up to
        σ_L; `observation.project` makes it agree exactly.

    Returns:
      The last state, or its denoised mean, shape `(*event,)`.

    Reference:
      Jalal et al. 2021 (arXiv:2108.01368), Algorithm 1.
    """
    return annealed_langevin_dynamics(
        key,
        posterior_score(score_fn, observation),
        x,
        sigmas,
        step_size=step_size,
        steps_per_scale=steps_per_scale,
        temperature=temperature,
        denoise=denoise,
    )


def inpaint(
    key: PRNGKey,
    score_fn: ScoreFn,
    x: Float[Array, "*event"],
    sigmas: Sigmas,
    y: Float[Array, "*event"],
    *,
    mask: Bool[Array, "*event"],
    step_size: Scalar,
    steps_per_scale: int,
    temperature: Scalar = 1.0,
    denoise: bool = False,
) -> Float[Array, "*event"]:
    """Complete an image from its known pixels, like the official NCSNv2.

    The sampler is annealed Langevin dynamics in which the known pixels of the state are replaced by
    y + √temperature σᵢ z before every update. The last update moves the known pixels once more;
    `jnp.where(mask, y, result)` restores them.

    Args:
      key: the chain's key.
      score_fn: s(x, σ).
      x: the initial state, shape `(*event,)`; the official code draws it uniformly from [0, 1].
      sigmas: the noise levels, descending, shape `(num_scales,)`.
      y: the image, shape `(*event,)`; its unknown pixels are not read.
      mask: true where a pixel is known, shape `(*event,)`.
      step_size: ε, the step size of the last level, in squared units of x.
      steps_per_scale: T, the number of updates at each level.
      temperature: the variance of the injected noise, relative to Langevin's; 0 injects none.
      denoise: whether to return the denoised mean of the last state (the official code doesn't).

    Returns:
      The completed image, shape `(*event,)`.

    Raises:
      ValueError: if x, y and the mask differ in shape.

    Reference:
      Song & Ermon 2019 (arXiv:1907.05600), section 5, as in the code of Song & Ermon 2020
      (arXiv:2006.09011).
    """
    x, y = floating(x), floating(y, "y")
    if not x.shape == y.shape == mask.shape:
        raise ValueError(f"x, y and mask must have one shape, found {x.shape}, {y.shape} and {mask.shape}")

    def update(key, score_fn, x, sigma, alpha):
        pin_key, noise_key = jax.random.split(key)
        noise = jnp.sqrt(temperature) * sigma * jax.random.normal(pin_key, x.shape, x.dtype)
        x = jnp.where(mask, y + noise, x).astype(x.dtype)
        return langevin_step(noise_key, score_fn(x, sigma), x, alpha, temperature=temperature)

    finish = denoising(sigmas[-1]) if denoise else None
    sampler = annealed(update, sigmas, step_size=step_size, steps_per_scale=steps_per_scale, finish=finish)
    return run(key, sampler, score_fn, x)
