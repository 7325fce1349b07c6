"""Pull of a linear observation on a state: Aᵀ (Σ_y + σ² A Aᵀ)⁺ r, the gradient of a Gaussian likelihood.

Diagonal and circulant systems are solved in closed form, others by iteration:

- If the noise is independent, Σ_y = S², the pull is z₁/σ, where z = (z₁, z₂) is the shortest solution of
  σ A z₁ + S z₂ = r. LSMR finds it, or fits r by least squares where there is no solution. The condition
  number of this system is the square root of the condition number of Σ_y + σ² A Aᵀ.
- With a covariance v ↦ Σ_y v, conjugate gradients find w in (Σ_y + σ² A Aᵀ) w = r.

Reference:
  Fong & Saunders 2011 (arXiv:1006.0758), LSMR.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import custom_vmap

from ncsn_jax.operators import frequency_axes

MAX_STEPS = 2000
"""Largest number of iterations in each of three rounds."""

LARGEST_CHANGE = {"float32": 1e-3, "float64": 1e-9}
"""Largest change of a pull in the last round, relative to its size, that gives no warning; by type."""


class System(NamedTuple):
    """The system (Σ_y + σ² A Aᵀ) w = r of the measured entries.

    Attributes:
      operator: A, from x to real numbers.
      adjoint: Aᵀ.
      residual: r; 0 where nothing was measured.
      measured: true where something was measured.
      sigma: σ.
      shape: the shape of x.
    """

    operator: Callable[[Array], Array]
    adjoint: Callable[[Array], Array]
    residual: Array
    measured: Array
    sigma: Array
    shape: tuple[int, ...]


def pull_of(
    x: Array, operator: Callable[[Array], Array], residual: Array, noise: Any, sigma: Array, structure: Any
) -> Array:
    """Return Aᵀ (Σ_y + σ² A Aᵀ)⁺ r; NaN if σ, the noise or a residual that counts isn't finite.

    Args:
      x: an array like the pull.
      operator: A, from x to real numbers.
      residual: r; values that A never sees, or with infinite noise, don't count.
      noise: σ_y, one number or one for each residual, some axes of which may have the length 1; or a function
        v ↦ Σ_y v.
      sigma: σ.
      structure: the object that A belongs to, which may know a closed form (see `ncsn_jax.operators`).
    """
    noise_std = None if callable(noise) else noise
    squared_row_length = None if noise_std is None else getattr(structure, "squared_row_length", None)
    seen = operator(_probe(x.shape, x.dtype)) if squared_row_length is None else squared_row_length
    measured = jnp.broadcast_to(jnp.asarray(seen) != 0, residual.shape)
    is_equal = noise_std is not None and set(noise_std.shape[: len(frequency_axes(x.shape))]) <= {1}
    equal_noise = noise_std if is_equal else None
    if noise_std is not None and noise_std.ndim > 0:
        measured &= ~jnp.isinf(noise_std)
        noise_std = jnp.where(measured, noise_std, 1.0)
    residual = jnp.where(measured, residual, 0.0)
    # The iterations would not end, or return their start, 0.
    numbers = (sigma, residual, 0.0 if noise_std is None else noise_std)
    is_finite = jnp.stack([jnp.isfinite(number).all() for number in numbers]).all()
    residual = jnp.where(is_finite, residual, 0.0)
    transposed = jax.linear_transpose(operator, x)
    system = System(operator, lambda v: transposed(v)[0], residual, measured, sigma, x.shape)
    squared_spectrum: Callable[..., Any] = getattr(structure, "squared_spectrum", lambda shape: None)
    if noise_std is None:
        pull = _by_conjugate_gradients(system, noise)
    elif squared_row_length is not None:
        pull = _by_rows(system, noise_std, squared_row_length)
    elif equal_noise is not None and (eigenvalues := squared_spectrum(x.shape)) is not None:
        pull = _by_frequencies(system, equal_noise, eigenvalues)
    else:
        pull = _by_least_squares(system, noise_std)
    return jnp.where(is_finite, pull, jnp.nan)


def _by_rows(system: System, noise_std: Array, squared_row_length: Any) -> Array:
    """Return the pull of an operator with orthogonal rows; the noise is independent."""
    diagonal = jnp.square(noise_std) + jnp.square(system.sigma) * jnp.asarray(squared_row_length)
    return system.adjoint(_divided(system.residual, diagonal))


def _by_frequencies(system: System, noise_std: Array, squared_spectrum: Array) -> Array:
    """Return the pull of an operator with a circulant Aᵀ A; the noise is independent, and equal in space."""
    axes = frequency_axes(system.shape)
    eigenvalues = jnp.square(noise_std) + jnp.square(system.sigma) * squared_spectrum
    # Smaller ones are rounding errors: A doesn't see these frequencies of its channel.
    largest = jnp.max(squared_spectrum, axis=axes, keepdims=True)
    is_seen = squared_spectrum > 10 * jnp.finfo(system.residual.dtype).eps * largest
    pulled = jnp.fft.fftn(system.adjoint(system.residual), axes=axes)
    pulled = _divided(pulled, jnp.where(is_seen, eigenvalues, 0.0))
    return jnp.fft.ifftn(pulled, axes=axes).real.astype(system.residual.dtype)


def _by_least_squares(system: System, noise_std: Array) -> Array:
    """Return the pull of any operator; the noise is independent."""
    import lineax

    sigma, residual, measured = system.sigma, system.residual, system.measured
    noise_std = jnp.broadcast_to(noise_std, residual.shape)
    row_length = _row_length(system)
    # With rows of equal length, noise levels of all sizes keep the condition number small.
    scale = measured * _divided(1.0, jnp.hypot(noise_std, sigma * row_length))

    def apply(z):
        return scale * (sigma * system.operator(z[0]) + noise_std * z[1])

    def pull(z):
        # Both forms are exact; where the noise is larger than σ A, z₁ is small and has few digits.
        unexplained = measured * (residual - system.operator(sigma * z[0]))
        by_noise = system.adjoint(_divided(unexplained, jnp.square(noise_std)))
        is_noisy = jnp.min(jnp.where(measured, noise_std, jnp.inf)) >= sigma * row_length
        return jnp.where(is_noisy, by_noise, _divided(z[0], sigma))

    start = (jnp.zeros(system.shape, residual.dtype), jnp.zeros_like(residual))
    eps = float(jnp.finfo(residual.dtype).eps)
    solver = lineax.LSMR(rtol=eps, atol=0.0, max_steps=MAX_STEPS, conlim=1 / eps)
    operator = lineax.FunctionLinearOperator(apply, jax.eval_shape(lambda: start))

    def solve(rest):
        return lineax.linear_solve(operator, rest, solver, throw=False).value

    return _refined(solve, apply, scale * residual, start, pull, sigma)


def _by_conjugate_gradients(system: System, covariance: Callable[..., Any]) -> Array:
    """Return the pull of any operator; the noise has a covariance v ↦ Σ_y v."""
    import lineax

    sigma, residual, measured = system.sigma, system.residual, system.measured
    probe = measured * _probe(residual.shape, residual.dtype)
    variance = jnp.vdot(probe, covariance(probe)) / jnp.maximum(jnp.vdot(probe, probe), 1e-30)
    scale = _divided(1.0, variance + jnp.square(sigma * _row_length(system)))

    def apply(w):
        w = measured * w
        through = jnp.square(sigma) * system.operator(system.adjoint(w))
        return scale * measured * (covariance(w) + through)

    eps = float(jnp.finfo(residual.dtype).eps)
    # lineax takes eigenvalues below 100 ε n for zero, whatever the largest one.
    factor = max(1.0, 1e8 * eps * residual.size)
    operator = lineax.FunctionLinearOperator(
        lambda w: factor * apply(w), jax.eval_shape(lambda: residual), lineax.positive_semidefinite_tag
    )
    solver = lineax.CG(rtol=0.0, atol=factor * eps**0.5, norm=jnp.linalg.norm, max_steps=MAX_STEPS)

    def solve(rest):
        length = jnp.linalg.norm(rest)
        unit = factor * _divided(rest, length)
        return length * lineax.linear_solve(operator, unit, solver, throw=False).value

    def pull(w):
        return system.adjoint(measured * w)

    return _refined(solve, apply, scale * residual, jnp.zeros_like(residual), pull, sigma)


def _refined(solve, apply, target, start, pull, sigma) -> Array:
    """Return the pull of the solution of apply(z) = target, refined twice; warn if it still changes."""

    def refine(z, _):
        z = jax.tree.map(jnp.add, z, solve(target - apply(z)))
        return z, pull(z)

    _, pulls = jax.lax.scan(refine, start, length=3)
    change = _divided(jnp.linalg.norm(pulls[2] - pulls[1]), jnp.linalg.norm(pulls[2]))
    _warn(jax.lax.stop_gradient(change), sigma)
    return pulls[2]


@custom_vmap
def _warn(change: Array, sigma: Array) -> Array:
    """Warn of a pull that hasn't converged; if it has, nothing leaves the device."""
    is_large = change > LARGEST_CHANGE[change.dtype.name]
    jax.lax.cond(is_large, lambda: jax.debug.callback(_say, change, sigma), lambda: None)
    return change


@_warn.def_vmap
def _warn_of_largest(axis_size, is_batched, change, sigma):
    """Warn once for a batch: a condition that isn't batched stays a condition."""
    worst = jnp.argmax(change)
    _warn(change[worst], sigma[worst] if is_batched[1] else sigma)
    return change, True


def _say(change, sigma) -> None:
    # `warnings.warn` would add a line of jax's source code.
    warnings.warn_explicit(
        f"the pull of an observation at σ={sigma:.3g} hasn't converged: its last change is {change:.1g} of "
        "its size; use float64, more noise, or an operator with a smaller condition number",
        UserWarning,
        filename=__name__,
        lineno=0,
    )


def _row_length(system: System) -> Array:
    """Return the root mean square length of the rows of A, estimated by a random vector."""
    seen = system.measured * system.operator(_probe(system.shape, system.residual.dtype))
    return jnp.linalg.norm(seen) / jnp.sqrt(jnp.maximum(jnp.sum(system.measured), 1))


def _probe(shape, dtype) -> Array:
    return jax.random.normal(jax.random.key(0), shape, dtype)


def _divided(numerator, denominator) -> Array:
    """Return the quotient, and 0 where the denominator is 0."""
    is_zero = denominator == 0
    return jnp.where(is_zero, 0.0, numerator / jnp.where(is_zero, 1.0, denominator))
