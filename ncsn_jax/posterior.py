"""Samplers of one image given an observation of it.

One mechanism undoes any linear loss of information. Given y = A x₀ + n, n ~ N(0, Σ_y), and a state
x = x₀ + σ z, both noises enter the likelihood, N(y; A x, Σ_y + σ² A Aᵀ). `posterior_score` adds the gradient
of its logarithm to the prior's score, without differentiating the network, and any sampler can use the sum as
its score. As σ → 0 the sum becomes the posterior's own score, so Langevin dynamics, which equilibrate at the
last level, draw from p(x₀ | y). Samplers that visit each level once only approximate it; docs/samplers.md
says by how much.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Bool, Float

from ncsn_jax.dtypes import floating, scalars, wide
from ncsn_jax.operators import BlockAverage, Compose, Convolution, FourierMask, Identity, Luma, Mask
from ncsn_jax.pull import pull_of
from ncsn_jax.samplers.langevin import (
    annealed,
    annealed_langevin_dynamics,
    denoising,
    langevin_step,
)
from ncsn_jax.samplers.sampler import run
from ncsn_jax.typing import PRNGKey, Scalar, ScoreFn, Sigmas

__all__ = [
    "BlockAverage",
    "Compose",
    "Convolution",
    "FourierMask",
    "Identity",
    "Luma",
    "Mask",
    "Observation",
    "PosteriorScore",
    "inpaint",
    "posterior_score",
    "sample_posterior",
]


class Observation(struct.PyTreeNode):
    """A linear observation y = A x₀ + n, n ~ N(0, Σ_y).

    It is a pytree if its parts are, like the operators of this package; wrap a plain function in
    `jax.tree_util.Partial`. The real and the imaginary part of a complex y are two measurements.

    Attributes:
      y: the measured values, of the shape of A x. Entries that A never sees, such as unknown pixels, and
        entries with infinite noise aren't read.
      operator: A, any real-linear function of x to real or complex numbers.
      noise_std: the noise: σ_y, the standard deviation of every measurement, in the units of y; a noise map,
        one σ_y for each entry of y, infinite where nothing was measured, or with axes of length 1 where it
        is the same; or a function v ↦ Σ_y v of an array like y, the covariance. With σ_y = 0 the pull fits y
        by least squares.

    `pull` and `project` raise a ValueError for a y or a noise map without the shape of A x, for complex y of
    a real operator and the reverse, and for an x without a floating type. They return NaN if a number that
    they read isn't finite.

    Operators with orthogonal rows and independent noise, and periodic convolutions and masks of frequencies
    with one σ_y, have closed forms. Others are solved by iteration (`ncsn_jax.pull`), in jax's default
    floating type: for condition numbers of Σ_y + σ² A Aᵀ up to 1e3 the relative error of a pull is below 1e-4
    in float32 and 1e-10 in float64. A pull that doesn't converge gives a warning; a larger condition number
    costs digits without one.
    """

    y: Any
    operator: Callable[[Any], Any]
    noise_std: Any = 0.0

    def pull(self, x: Float[Array, "*event"], sigma: Scalar) -> Float[Array, "*event"]:
        """The likelihood's gradient ∇ₓ log N(y; A x, Σ_y + σ² A Aᵀ) = Aᵀ (Σ_y + σ² A Aᵀ)⁺ (y − A x)."""
        return self._solve(x, sigma, self.noise_std)

    def project(self, x: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """The image nearest to x with A x = y, x + Aᵀ (A Aᵀ)⁺ (y − A x), up to rounding."""
        return x + self._solve(x, 1.0, 0.0)

    def _solve(self, x, sigma, noise_std):
        if jnp.ndim(sigma) != 0:
            raise ValueError(f"sigma must be one number, found the shape {jnp.shape(sigma)}")
        dtype, x = floating(x).dtype, floating(x).astype(wide(x, float))
        sigma = jnp.asarray(sigma, x.dtype)
        seen = jax.eval_shape(self.operator, x)
        _check(self.y, noise_std, seen)
        is_complex = jnp.issubdtype(seen.dtype, jnp.complexfloating)

        def operator(x):
            return _parts(self.operator(x)).astype(x.dtype)

        if callable(noise_std):
            noise = _covariance_of_parts(noise_std) if is_complex else noise_std
        else:
            noise = jnp.asarray(noise_std, x.dtype)
            noise = jnp.stack([noise, noise]) if is_complex and noise.ndim else noise
        residual = _parts(jnp.asarray(self.y)) - operator(x)
        return pull_of(x, operator, residual, noise, sigma, self.operator).astype(dtype)


def _check(y, noise_std, seen: jax.ShapeDtypeStruct) -> None:
    """Check that y and the noise fit A x."""
    if jnp.shape(y) != seen.shape:
        raise ValueError(f"y must have the shape of A x, {seen.shape}, found {jnp.shape(y)}")
    found = "complex" if jnp.iscomplexobj(y) else "real"
    expected = "complex" if jnp.issubdtype(seen.dtype, jnp.complexfloating) else "real"
    if found != expected:
        raise ValueError(f"y must be {expected}, like A x, found {found} numbers")
    if callable(noise_std):
        return
    shape = jnp.shape(noise_std)
    fits = len(shape) == len(seen.shape) and all(n in (1, m) for n, m in zip(shape, seen.shape, strict=True))
    if shape != () and not fits:
        raise ValueError(
            f"noise_std must be one number, a function, or have the shape of y, {seen.shape}; found the "
            f"shape {shape}"
        )
    if jnp.iscomplexobj(noise_std):
        raise ValueError("noise_std must be real, found complex numbers")


def _parts(v: Array) -> Array:
    """Return the real and the imaginary parts of complex numbers, stacked; real numbers as they are."""
    return jnp.stack([v.real, v.imag]) if jnp.iscomplexobj(v) else v


def _covariance_of_parts(covariance: Callable[..., Any]) -> Callable[[Array], Array]:
    """Return v ↦ Σ_y v for stacked parts."""
    return lambda v: _parts(covariance(jax.lax.complex(v[0], v[1])))


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
    """The score of x given an observation: s(x, σ) + ∇ₓ log N(y; A x, Σ_y + σ² A Aᵀ).

    The second term assumes that x₀ and its noise z are independent given x, and that the prior of A x₀ is
    flat; as σ → 0, neither assumption is needed.

    Args:
      score_fn: s(x, σ), the prior's score.
      observation: y, A and the noise.

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
      observation: y, A and the noise.
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
