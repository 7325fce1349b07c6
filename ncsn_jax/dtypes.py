"""Floating-point types: the accepted types of x, and the types of coefficients and results.

A result has the type of x. Coefficients are computed in at least float32, even if x is narrower.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike


def floating(x: Any, name: str = "x") -> Array:
    """Return x as an array of a floating type.

    Args:
      x: an array, or a value that `jnp.asarray` accepts.
      name: the name of x in the error.

    Raises:
      ValueError: if x has another type; noise levels would be rounded to it.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} must have a floating type, found {x.dtype}; use {name}.astype(jnp.float32)")
    return x


def wide(*values: ArrayLike | DTypeLike) -> Any:
    """The type for computing with values, given as arrays or types: at least float32."""
    dtype = jnp.result_type(*values)
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def widened(x: Any) -> Array:
    """Return x, of a floating type, in float32 or wider."""
    x = floating(x)
    return x.astype(wide(x))


def scalars(x: Array, *values: Any) -> tuple[Array, ...]:
    """Return coefficients of x as arrays of the type of x, but at least float32.

    Raises:
      ValueError: if x has no floating type.
    """
    dtype = wide(floating(x))
    return tuple(jnp.asarray(value, dtype) for value in values)


def root(square: Array) -> Array:
    """√square, with derivative 0 at 0: no noise is added there, and a gradient must not become NaN."""
    is_zero = square == 0
    return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, square)))
