"""Samplers of one image given an observation, and of one row of related images.

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

from ncsn_jax.dtypes import floating, scalars, wide, widened
from ncsn_jax.langevin import (
    anneal,
    annealed_langevin_dynamics,
    denoised,
    langevin_step,
    langevin_update,
)
from ncsn_jax.samplers import probability_flow
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
    observation: Float[Array, "*event"],
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
    `jnp.where(mask, observation, result)` restores them.

    Args:
      key: the chain's key.
      score_fn: s(x, σ).
      x: the initial state, shape `(*event,)`; the official code draws it uniformly from [0, 1].
      sigmas: the noise levels, descending, shape `(num_scales,)`.
      observation: y, the image, shape `(*event,)`; its unknown pixels are not read.
      mask: true where a pixel is known, shape `(*event,)`.
      step_size: ε, the step size of the last level, in squared units of x.
      steps_per_scale: T, the number of updates at each level.
      temperature: the variance of the injected noise, relative to Langevin's; 0 injects none.
      denoise: whether to return the denoised mean of the last state (the official code doesn't).

    Returns:
      The completed image, shape `(*event,)`.

    Raises:
      ValueError: if the state, the observation and the mask differ in shape.

    Reference:
      Song & Ermon 2019 (arXiv:1907.05600), section 5, as in the code of Song & Ermon 2020
      (arXiv:2006.09011).
    """
    x, observation = floating(x), floating(observation, "observation")
    if not x.shape == observation.shape == mask.shape:
        raise ValueError(
            "x, observation and mask must have one shape, found "
            f"{x.shape}, {observation.shape} and {mask.shape}"
        )

    def update(key, x, sigma, alpha):
        pin_key, noise_key = jax.random.split(key)
        noise = jnp.sqrt(temperature) * sigma * jax.random.normal(pin_key, x.shape, x.dtype)
        x = jnp.where(mask, observation + noise, x).astype(x.dtype)
        return langevin_step(noise_key, score_fn(x, sigma), x, alpha, temperature=temperature)

    x = anneal(key, update, x, sigmas, step_size=step_size, steps_per_scale=steps_per_scale)
    return denoised(score_fn, x, sigmas[-1]) if denoise else x


def interpolate(
    key: PRNGKey,
    score_fn: ScoreFn,
    x: Float[Array, "*event"],
    sigmas: Sigmas,
    *,
    num_interpolations: int,
    step_size: Scalar,
    steps_per_scale: int,
    temperature: Scalar = 1.0,
    denoise: bool = False,
) -> Float[Array, "num_interpolations *event"]:
    """Draw a row of samples that interpolates from the first to the last, like the official NCSNv2.

    The chains k = 0 … K−1 start at the same x and get the noise z_k = cos(θ_k) p + sin(θ_k) q with
    θ_k = ½πk/(K−1), where p and q are shared by all chains and new at every step. Each z_k is N(0, I), so
    each chain on its own is annealed Langevin dynamics.

    Args:
      key: the row's key.
      score_fn: s(x, σ).
      x: the initial state of every chain, shape `(*event,)`.
      sigmas: the noise levels, descending, shape `(num_scales,)`.
      num_interpolations: K, the number of chains.
      step_size: ε, the step size of the last level, in squared units of x.
      steps_per_scale: T, the number of updates at each level.
      temperature: the variance of the injected noise, relative to Langevin's; 0 injects none.
      denoise: whether to return the denoised means of the last states (the official code doesn't).

    Returns:
      The samples, shape `(num_interpolations, *event)`.

    Raises:
      ValueError: if there are no chains.

    Reference:
      Song & Ermon 2020 (arXiv:2006.09011), and its code.
    """
    if num_interpolations < 1:
        raise ValueError(f"num_interpolations must be at least 1, found {num_interpolations}")

    def update(key, row, sigma, alpha):
        return interpolation_update(key, score_fn, row, sigma, alpha, temperature=temperature)

    row = jnp.broadcast_to(floating(x), (num_interpolations, *x.shape))
    row = anneal(key, update, row, sigmas, step_size=step_size, steps_per_scale=steps_per_scale)
    return jax.vmap(lambda x: denoised(score_fn, x, sigmas[-1]))(row) if denoise else row


def interpolation_update(
    key: PRNGKey,
    score_fn: ScoreFn,
    row: Float[Array, "num_interpolations *event"],
    sigma: Scalar,
    step_size: Scalar,
    *,
    temperature: Scalar = 1.0,
) -> Float[Array, "num_interpolations *event"]:
    """Take one Langevin step of all chains of `interpolate`, at one level."""
    p, q = jax.random.normal(key, (2, *row.shape[1:]), row.dtype)

    def update(angle, x):
        noise = jnp.cos(angle) * p + jnp.sin(angle) * q
        return langevin_update(noise, score_fn(x, sigma), x, step_size, temperature=temperature)

    return jax.vmap(update)(jnp.linspace(0.0, jnp.pi / 2.0, len(row), dtype=wide(row)), row)


def interpolate_latents(
    score_fn: ScoreFn,
    x: Float[Array, "*event"],
    other: Float[Array, "*event"],
    sigmas: Sigmas,
    *,
    num_interpolations: int,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Float[Array, "num_interpolations *event"]:
    """Interpolate between two images through their latents of the probability flow.

    Both are encoded from σ_L up to σ₁, an arc (`slerp`) joins their latents, and its points are decoded.

    Args:
      score_fn: s(x, σ), for any σ.
      x: the first image, shape `(*event,)`.
      other: the last image, shape `(*event,)`.
      sigmas: the noise levels, descending; the flow goes between the first and the last.
      num_interpolations: K, the number of images in the row.
      rtol: the relative tolerance of `probability_flow`.
      atol: the absolute tolerance of `probability_flow`.

    Returns:
      The row, shape `(num_interpolations, *event)`; its ends are the two images up to the tolerance.

    Raises:
      ValueError: if the score comes from a network of discrete levels.

    Reference:
      Song et al. 2021 (arXiv:2011.13456), appendix D.5.
    """

    def follow(x, start, stop):
        return probability_flow(score_fn, x, start, stop, rtol=rtol, atol=atol)

    ends = jnp.stack([widened(x), widened(other)])
    latents = jax.vmap(lambda x: follow(x, sigmas[-1], sigmas[0]))(ends)
    row = slerp(latents[0], latents[1], num_interpolations)
    return jax.vmap(lambda x: follow(x, sigmas[0], sigmas[-1]))(row).astype(x.dtype)


def slerp(
    a: Float[Array, "*event"], b: Float[Array, "*event"], num_points: int
) -> Float[Array, "num_points *event"]:
    """Points of the arc from a to b, (sin((1 − t) θ) a + sin(t θ) b) / sin θ, θ the angle between them.

    Between two draws of N(0, σ² I) in many dimensions, all points of the arc are as long as the draws; points
    of the straight line would be shorter.
    """
    dtype, a, b = floating(a).dtype, widened(a), widened(b)
    cosine = jnp.vdot(a, b) / (jnp.linalg.norm(a.ravel()) * jnp.linalg.norm(b.ravel()))
    angle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))

    def point(t):
        near, far = jnp.sin((1.0 - t) * angle), jnp.sin(t * angle)
        on_arc = (near * a + far * b) / jnp.sin(angle)
        return jnp.where(jnp.sin(angle) > 1e-6, on_arc, (1.0 - t) * a + t * b)

    return jax.vmap(point)(jnp.linspace(0.0, 1.0, num_points, dtype=a.dtype)).astype(dtype)
