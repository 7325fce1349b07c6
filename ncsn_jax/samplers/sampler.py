"""A sampler as an object: one step, the noise levels that it descends, and a last operation."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ncsn_jax.dtypes import scalars
from ncsn_jax.typing import PRNGKey, Scalar, ScoreFn, Sigmas

Step = Callable[[PRNGKey, ScoreFn, Array, Scalar, Scalar], Array]
"""Function of (key, score_fn, x, σ, σ') that returns x at σ'."""

Levels = Sequence[Scalar] | Float[Array, " num_levels"]
"""Noise levels, descending; the last may be 0."""


class Sampler(NamedTuple):
    """A sampler of one chain, which `run` runs.

    Attributes:
      step: the step from one level to the next.
      levels: the noise levels, descending; step i leads from `levels[i]` to `levels[i + 1]`. The last may be
        0.
      finish: the function from the score and the last state to the result; None if the last state is the
        result.
    """

    step: Step
    levels: Levels
    finish: Callable[[ScoreFn, Array], Array] | None = None

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return len(self.levels) - 1


def down_to_zero(sigmas: Sigmas) -> Levels:
    """Return noise levels and, after them, 0."""
    return (*sigmas, 0.0) if isinstance(sigmas, tuple | list) else jnp.append(jnp.asarray(sigmas), 0.0)


def run(
    key: PRNGKey,
    sampler: Sampler,
    score_fn: ScoreFn,
    x: Any,
    *,
    save: Callable[[Any], Any] | None = None,
) -> Any:
    """Descend the levels of a sampler, x ← step(keyᵢ, score_fn, x, σᵢ, σᵢ₊₁), and finish.

    Args:
      key: the chain's key; step i draws from its `fold_in(i)`.
      sampler: the sampler.
      score_fn: s(x, σ).
      x: the first state, shape `(*event,)`, or `(n, *event)` if the sampler's state is a row.
      save: a function of a state, such as `lambda x: x`, whose values are returned as well.

    Returns:
      The result. With `save`, a pair: the result, and save(x) after every step, stacked, with the last one
      taken after `finish`.

    Raises:
      ValueError: if the levels aren't a row, or x has no floating type.
    """
    (levels,) = scalars(x, sampler.levels)
    if levels.ndim != 1 or not levels.size:
        raise ValueError(f"sigmas must be a row of levels, found the shape {levels.shape}")

    def body(x, numbered):
        i, sigma, next_sigma = numbered
        x = sampler.step(jax.random.fold_in(key, i), score_fn, x, sigma, next_sigma)
        return x, None if save is None else save(x)

    steps = (jnp.arange(len(levels) - 1), levels[:-1], levels[1:])
    x, saved = jax.lax.scan(body, x, steps)
    x = x if sampler.finish is None else sampler.finish(score_fn, x)
    if save is None:
        return x
    return x, jax.tree.map(lambda states, last: states.at[-1].set(last), saved, save(x))
