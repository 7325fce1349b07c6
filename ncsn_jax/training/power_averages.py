"""Moving averages of parameters by power functions, and averages of other lengths from stored ones.

After t updates, the average of the parameters θ₁, θ₂, … θ_t with the exponent γ has the weights
(τ^(γ+1) − (τ − 1)^(γ+1))/t^(γ+1), the integrals of its profile p(s) = (γ + 1) s^γ/t^(γ+1) over the steps
τ − 1 < s ≤ τ. Its length σ_rel = √(γ + 1)/((γ + 2) √(γ + 3)) is the profile's standard deviation relative to
t. A sum of stored averages is the average with the sum of their profiles, so least squares between profiles
give any other length: no parameter is needed to find the coefficients.

Reference:
  Karras et al. 2024 (arXiv:2312.02696), sections 3.1 and 3.2, and appendix C.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

LONGEST = math.sqrt(1 / 12)
"""σ_rel of γ = 0, where all parameters have the same weight."""


class Profile(NamedTuple):
    """The profile of an average after `num_updates` updates, with the length σ_rel."""

    num_updates: int
    length: float


class Synthesis(NamedTuple):
    """An average as a sum of stored ones.

    Attributes:
      coefficients: the coefficients of the stored averages; they sum to 1.
      residual: ‖p̂ − p‖/‖p‖, the distance of the summed profile from the wanted one, relative to its norm.
    """

    coefficients: Float[np.ndarray, " stored"]
    residual: float


def exponent(length: float) -> float:
    """Return γ ≥ 0 of the length σ_rel.

    Raises:
      ValueError: unless 0 < σ_rel ≤ √(1/12).
    """
    if not 0 < length <= LONGEST:
        raise ValueError(f"length={length}: accepted: more than 0, at most {LONGEST:.4f} (a plain mean)")
    inverse = length**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return max(0.0, float(np.max(roots.real)))


def update_size(num_updates: Int[Array, ""] | int, length: float) -> Float[Array, ""]:
    """Return 1 − (1 − 1/t)^(γ+1), the weight of the parameters in the t-th update of the average."""
    return -jnp.expm1((exponent(length) + 1.0) * jnp.log1p(-1.0 / num_updates))


def synthesis(wanted: Profile, stored: Sequence[Profile]) -> Synthesis:
    """Return the coefficients with which stored averages come closest to a wanted one.

    They minimise ‖p̂ − p‖ over the sums p̂ of the stored profiles whose coefficients sum to 1, so an average of
    constant parameters stays exact. The residual bounds the error of the synthesised average of any path:
    with a(θ) the exact average and c any constant, |â(θ) − a(θ)| ≤ residual · ‖p‖ (∫|θ − c|² ds)^½.

    Args:
      wanted: the profile to approximate.
      stored: the profiles of the stored averages; at least one.
    """
    profiles = [wanted, *stored]
    time = np.array([profile.num_updates for profile in profiles], np.float64)
    gamma = np.array([exponent(profile.length) for profile in profiles])
    products = _inner_products(time, gamma)
    scale = np.sqrt(np.diag(products))
    products /= np.outer(scale, scale)
    if wanted in stored:
        return Synthesis(np.eye(len(stored))[stored.index(wanted)], 0.0)
    # Minimise with a Lagrange multiplier of the sum, which is in units of the wanted profile's norm.
    count, sums = len(stored), scale[0] / scale[1:]
    system = np.block([[products[1:, 1:], sums[:, None]], [sums[None], np.zeros((1, 1))]])
    solution = np.linalg.lstsq(system, np.append(products[1:, 0], 1.0), rcond=1e-14)[0][:count]
    error = 1.0 - 2.0 * solution @ products[1:, 0] + solution @ products[1:, 1:] @ solution
    coefficients = solution * sums
    return Synthesis(coefficients / coefficients.sum(), math.sqrt(max(0.0, error)))


def _inner_products(
    time: Float[np.ndarray, " n"], gamma: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n n"]:
    """Return ∫ p_i(s) p_j(s) ds for all pairs: (γᵢ+1)(γⱼ+1)/(γᵢ+γⱼ+1) · (t/t')^γ'/t', t the earlier end."""
    product = np.outer(gamma + 1, gamma + 1) / (gamma[:, None] + gamma[None] + 1)
    is_earlier = time[:, None] <= time[None]
    later_time = np.where(is_earlier, time[None], time[:, None])
    later_gamma = np.where(is_earlier, gamma[None], gamma[:, None])
    ratio = np.minimum(time[:, None], time[None]) / later_time
    return product * ratio**later_gamma / later_time
