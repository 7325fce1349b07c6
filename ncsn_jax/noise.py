"""Schedules of noise levels σ₁ > … > σ_L."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float


def geometric_sigmas(sigma_begin: float, sigma_end: float, num_scales: int) -> Float[Array, " num_scales"]:
    """The geometric sequence of noise levels, σ₁/σ₂ = … = σ_{L−1}/σ_L.

    It is computed in double precision and rounded once, as the official code does it.

    Args:
      sigma_begin: σ₁, the largest level, in the units of the data.
      sigma_end: σ_L, the smallest level, positive.
      num_scales: L, the number of levels; a single level is σ₁.

    Returns:
      The levels, descending, float32, shape `(num_scales,)`.

    Raises:
      ValueError: if not 0 < σ_L < σ₁ < ∞, there are no levels, or two are equal in single precision.

    Reference:
      Song & Ermon 2019 (arXiv:1907.05600), section 4.1.

    >>> geometric_sigmas(1.0, 0.01, 3)
    Array([1.  , 0.1 , 0.01], dtype=float32)
    """
    if num_scales < 1:
        raise ValueError(f"num_scales must be at least 1, found {num_scales}")
    if 0 < sigma_end < sigma_begin < np.inf:
        sigmas = np.geomspace(sigma_begin, sigma_end, num_scales).astype(np.float32)
        if sigmas[-1] > 0 and np.all(np.diff(sigmas) < 0):
            return jnp.asarray(sigmas)
    raise ValueError(
        "noise levels descend, in single precision, from sigma_begin to sigma_end > 0: "
        f"found sigma_begin={sigma_begin}, sigma_end={sigma_end}, num_scales={num_scales}"
    )
