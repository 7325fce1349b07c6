"""Schedules of noise levels σ₁ > … > σ_L, and rules for choosing one from data."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Shaped

from ncsn_jax.typing import PRNGKey, Scalar

EXACT_UP_TO = 10_000
"""Largest number of examples for which `largest_distance` compares all pairs."""


def geometric_sigmas(sigma_begin: float, sigma_end: float, num_scales: int) -> Float[Array, " num_scales"]:
    """The geometric sequence of noise levels, σ₁/σ₂ = … = σ_{L−1}/σ_L.

    It is computed in double precision and rounded once, as in the official code.

    Args:
      sigma_begin: σ₁, the largest level, in the units of the data.
      sigma_end: σ_L, the smallest level, positive.
      num_scales: L, the number of levels; a single level is σ₁.

    Returns:
      The levels, descending, float32, shape `(num_scales,)`.

    Raises:
      ValueError: unless 0 < σ_L < σ₁ < ∞ and L ≥ 1, or if two levels are equal in single precision.

    Reference:
      Song & Ermon 2019 (arXiv:1907.05600), section 4.1.

    >>> geometric_sigmas(1.0, 0.01, 3)
    Array([1.  , 0.1 , 0.01], dtype=float32)
    """
    return jnp.asarray(geometric_levels(sigma_begin, sigma_end, num_scales))


def geometric_levels(
    sigma_begin: float, sigma_end: float, num_scales: int
) -> Float[np.ndarray, " num_scales"]:
    """`geometric_sigmas` as a numpy array, in host memory.

    The config is read before the processes connect to each other; until then, no process may use its devices.
    """
    sigma_begin, sigma_end = float(sigma_begin), float(sigma_end)
    return _descending(
        lambda: np.geomspace(sigma_begin, sigma_end, num_scales), sigma_begin, sigma_end, num_scales
    )


def karras_sigmas(
    sigma_begin: float, sigma_end: float, num_scales: int, *, rho: float = 7.0
) -> Float[Array, " num_scales"]:
    """The noise levels of Karras et al., whose ρ-th roots are evenly spaced: denser at small σ.

    σᵢ = (σ₁^(1/ρ) + (i − 1)/(L − 1) (σ_L^(1/ρ) − σ₁^(1/ρ)))^ρ; as ρ → ∞ they become geometric.

    Args:
      sigma_begin: σ₁, the largest level, in the units of the data.
      sigma_end: σ_L, the smallest level, positive.
      num_scales: L, the number of levels; a single level is σ₁.
      rho: ρ, positive.

    Returns:
      The levels, descending, float32, shape `(num_scales,)`.

    Raises:
      ValueError: unless 0 < σ_L < σ₁ < ∞, ρ > 0 and L ≥ 1, or if two levels are equal in single precision.

    Reference:
      Karras et al. 2022 (arXiv:2206.00364), equation 5.

    >>> karras_sigmas(80.0, 0.002, 3)
    Array([8.000000e+01, 2.515219e+00, 2.000000e-03], dtype=float32)
    """
    sigma_begin, sigma_end, rho = float(sigma_begin), float(sigma_end), float(rho)
    if not rho > 0:
        raise ValueError(f"rho must be positive, found {rho}")
    levels = _descending(
        lambda: np.linspace(sigma_begin ** (1 / rho), sigma_end ** (1 / rho), num_scales) ** rho,
        sigma_begin,
        sigma_end,
        num_scales,
    )
    return jnp.asarray(levels)


def _descending(levels, sigma_begin, sigma_end, num_scales) -> Float[np.ndarray, " num_scales"]:
    """Compute levels in double precision, round them once, and check that they descend."""
    if num_scales < 1:
        raise ValueError(f"num_scales must be at least 1, found {num_scales}")
    if 0 < sigma_end < sigma_begin < np.inf:
        sigmas = levels().astype(np.float32)
        if sigmas[-1] > 0 and np.all(np.diff(sigmas) < 0):
            return sigmas
    raise ValueError(
        "noise levels must descend, in single precision, from sigma_begin to sigma_end > 0; "
        f"found sigma_begin={sigma_begin}, sigma_end={sigma_end}, num_scales={num_scales}"
    )


def log_uniform_sigma(key: PRNGKey, sigma_begin: Scalar, sigma_end: Scalar) -> Float[Array, ""]:
    """Draw a noise level whose logarithm is uniform from σ_L to σ₁, the limit of many geometric levels.

    Args:
      key: the key of the draw.
      sigma_begin: σ₁, the largest level.
      sigma_end: σ_L, the smallest level, positive.

    Returns:
      σ, a scalar.
    """
    low, high = jnp.log(jnp.asarray(sigma_end)), jnp.log(jnp.asarray(sigma_begin))
    return jnp.exp(jax.random.uniform(key, minval=low, maxval=high))


def log_normal_sigma(key: PRNGKey, p_mean: Scalar, p_std: Scalar) -> Float[Array, ""]:
    """Draw a noise level whose logarithm has the distribution N(P_mean, P_std²).

    Args:
      key: the key of the draw.
      p_mean: P_mean, the mean of log σ; σ is in the units of the data.
      p_std: P_std, the standard deviation of log σ.

    Returns:
      σ, a scalar.

    Reference:
      Karras et al. 2022 (arXiv:2206.00364), table 1.
    """
    return jnp.exp(p_mean + p_std * jax.random.normal(key))


# scipy and scikit-learn are imported in functions: importing them takes longer than the whole package.


def largest_distance(x: Shaped[np.ndarray, "n ..."], *, exact_up_to: int = EXACT_UP_TO) -> float:
    """σ₁ by NCSNv2's Technique 1: the largest Euclidean distance between two training examples.

    With this much noise, a chain can move from any example to any other.

    The distance is exact for up to `exact_up_to` examples. For more it is a lower bound, by farthest-point
    search: each of ten walks starts at an example drawn with a fixed seed and moves to the farthest example
    until the distance stops growing. The longest of the ten distances is at least half the exact one, by the
    triangle inequality; on the digits and on MNIST it was exact.

    Args:
      x: at least two examples.
      exact_up_to: the largest number of examples for which all pairs are compared.

    Returns:
      The distance, in the units of x.

    Raises:
      ValueError: if there are fewer than two examples, all are equal, or some aren't finite.

    Reference:
      Song & Ermon 2020 (arXiv:2006.09011), Technique 1.
    """
    from sklearn.metrics import pairwise_distances_chunked

    if len(x) < 2:
        raise ValueError(f"a distance needs at least two examples, found {len(x)}")
    x = np.asarray(x, np.float32).reshape(len(x), -1)
    if not np.isfinite(x).all():
        raise ValueError("examples must be finite numbers, found NaN or infinity")
    if len(x) <= exact_up_to:
        chunks = pairwise_distances_chunked(x, reduce_func=lambda distances, _: distances.max(axis=1))
        longest = float(max(map(np.max, chunks)))
    else:
        starts = np.random.default_rng(0).choice(len(x), min(10, len(x)), replace=False)
        longest = max(_walk(x, int(start)) for start in starts)
    if longest == 0:
        raise ValueError(f"all {len(x)} examples are equal; at least two must differ")
    return longest


def _walk(x: Float[np.ndarray, "n D"], start: int) -> float:
    """Move from example to farthest example until the distance stops growing; return that distance."""
    longest = 0.0
    while True:
        distances = np.linalg.norm(x - x[start], axis=1)
        start = int(np.argmax(distances))
        if distances[start] <= longest:
            return longest
        longest = float(distances[start])


def num_scales_for(sigma_begin: float, sigma_end: float, dim: int, *, overlap: float = 0.5) -> int:
    """L by NCSNv2's Technique 2: enough noise levels for neighbouring ones to overlap.

    In D dimensions, data perturbed at level σ lie near a sphere: their distance r from the clean example has
    approximately the distribution N(√D σ, σ²/2). The ratio γ = σᵢ₋₁/σᵢ is chosen such that the probability of
    level i on the three-sigma range of level i − 1, Φ(√(2D) (γ − 1) + 3γ) − Φ(√(2D) (γ − 1) − 3γ), is
    `overlap`. The ratio is at most 2, because in few dimensions any two levels overlap.

    Args:
      sigma_begin: σ₁, the largest level.
      sigma_end: σ_L, the smallest level.
      dim: D, the number of elements of an example.
      overlap: C, between 0 and 0.997.

    Returns:
      L, at least 2.

    Raises:
      ValueError: unless 0 < σ_L < σ₁ < ∞, 1 ≤ D < ∞ and 0 < C < 0.997.

    Reference:
      Song & Ermon 2020 (arXiv:2006.09011), Technique 2.

    >>> num_scales_for(50.0, 0.01, 3 * 32 * 32)  # the paper uses 232 for CIFAR-10
    220
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    if not (0 < sigma_end < sigma_begin < math.inf and 1 <= dim < math.inf and 0 < overlap < 0.997):
        raise ValueError(
            "0 < sigma_end < sigma_begin < ∞, dim ≥ 1 and 0 < overlap < 0.997 must hold; found "
            f"sigma_end={sigma_end}, sigma_begin={sigma_begin}, dim={dim}, overlap={overlap}"
        )

    def excess(ratio):
        shift = math.sqrt(2 * dim) * (ratio - 1)
        return norm.cdf(shift + 3 * ratio) - norm.cdf(shift - 3 * ratio) - overlap

    largest = 2.0
    ratio = brentq(excess, 1.0, largest) if excess(largest) < 0 else largest
    return 1 + math.ceil(math.log(sigma_begin / sigma_end) / np.log(ratio))


def step_size_for(sigmas: Sequence[float] | Float[ArrayLike, " num_scales"], steps_per_scale: int) -> float:
    """ε by NCSNv2's Technique 4: with it, T steps per level bring a chain's variance closest to the level's.

    On data concentrated at a point, a chain enters level i with the variance of level i − 1, γ²σᵢ². After T
    steps of size αᵢ = ε σᵢ²/σ_L², its variance is s², given by

      s²/σᵢ² = (1 − e)²ᵀ (γ² − v) + v,  where e = ε/σ_L² and v = 2e/(1 − (1 − e)²).

    This ratio is the same at every level; ε brings it as close to 1 as possible.

    Args:
      sigmas: the noise levels, descending and at least two; γ is the geometric mean of their ratios.
      steps_per_scale: T, the number of steps per level.

    Returns:
      ε, in squared units of the data.

    Raises:
      ValueError: if there are fewer than two levels, they aren't positive and descending, or T < 1.

    Reference:
      Song & Ermon 2020 (arXiv:2006.09011), Proposition 3 and Technique 4.

    >>> round(1e6 * step_size_for(geometric_sigmas(50.0, 0.01, 232), 5), 1)  # the paper uses 6.2 for CIFAR-10
    6.2
    """
    from scipy.optimize import minimize_scalar

    levels = np.asarray(sigmas, np.float64)
    if levels.ndim != 1 or len(levels) < 2 or steps_per_scale < 1:
        raise ValueError(
            "sigmas must be a row of at least two noise levels and steps_per_scale at least 1, found the "
            f"shape {levels.shape} and {steps_per_scale}"
        )
    if not (np.all(levels > 0) and np.all(np.diff(levels) < 0) and np.isfinite(levels).all()):
        raise ValueError(f"noise levels must be positive and descend, found {levels[:4]} …")
    squared_ratio = (levels[0] / levels[-1]) ** (2 / (len(levels) - 1))

    def variance(e):  # more than 1 for every e, so its minimum is closest to 1
        v = 1 / (1 - e / 2)
        return (1 - e) ** (2 * steps_per_scale) * (squared_ratio - v) + v

    e = minimize_scalar(variance, bounds=(0.0, 1.0), method="bounded", options={"xatol": 1e-9}).x
    return float(e * levels[-1] ** 2)
