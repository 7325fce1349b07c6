"""Types of numbers: which ones x may have, and the one that a result is computed in.

A result has the type of x. Coefficients are computed in float32 at least, also where x is narrower.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike


def floating(x: Any, name: str = "x") -> Array:
    """x as an array, which must have a floating type.

    Args:
      x: an array, or what `jnp.asarray` takes.
      name: what an error calls it.

    Raises:
      ValueError: if x has another type; noise levels would be rounded to it.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} must have a floating type, found {x.dtype}; use {name}.astype(jnp.float32)")
    return x


def wide(*values: ArrayLike | DTypeLike) -> Any:
    """The type in which values, given as arrays or as their types, are computed: float32 at least."""
    dtype = jnp.result_type(*values)
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def widened(x: Any) -> Array:
    """x, of a floating type, in float32 or wider."""
    x = floating(x)
    return x.astype(wide(x))


def scalars(x: Array, *values: Any) -> tuple[Array, ...]:
    """Coefficients of x, in the type of x or in float32 if that is narrower.

    Raises:
      ValueError: if x has no floating type.
    """
    dtype = wide(floating(x))
    return tuple(jnp.asarray(value, dtype) for value in values)


def root(square: Array) -> Array:
    """√square, with a derivative of 0 at 0: there, no noise is added, and a gradient must not become NaN."""
    is_zero = square == 0
    return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, square)))
