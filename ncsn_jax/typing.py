"""Types shared by signatures across the package."""

from collections.abc import Callable

from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Key

PRNGKey = Key[Array, ""]
"""One typed key (`jax.random.key`, threefry): the randomness of one example."""

Scalar = Float[ArrayLike, ""]
"""A real number: a Python float or an array without axes."""

Sigmas = Float[Array, " num_scales"] | tuple[float, ...]
"""Noise levels σ₁ > … > σ_L."""

ScoreFn = Callable[[Float[Array, "*event"], Scalar], Float[Array, "*event"]]
"""s(x, σ): the score ∇ₓ log p_σ(x) of data perturbed by N(0, σ²I), for a single example x."""
