"""The single-example view of a network."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import Array
from jaxtyping import Float

from ncsn_jax.dtypes import floating, scalars
from ncsn_jax.typing import PRNGKey, Scalar


@struct.dataclass
class NetworkScore:
    """A network with variables, a condition and a key of dropout, as a `ScoreFn`; a pytree of these three.

    Its result has the shape of x, unless the network isn't a score but, for example, a classifier.
    """

    model: nn.Module = struct.field(pytree_node=False)
    variables: Any
    condition: Any = None
    dropout_key: Any = None

    @property
    def sigmas(self) -> tuple[float, ...] | None:
        """The discrete levels that the network embeds; None if it takes any σ."""
        return getattr(self.model, "sigmas", None)

    def __call__(self, x: Float[Array, "*event"], sigma: Scalar) -> Float[Array, "..."]:
        x = floating(x)
        (sigma,) = scalars(x, sigma)
        condition = [] if self.condition is None else [jax.tree.map(_as_batch, self.condition)]
        rngs = None if self.dropout_key is None else {"dropout": self.dropout_key}
        score: Any = self.model.apply(self.variables, x[None], sigma[None], *condition, rngs=rngs)
        return score[0].astype(x.dtype)


def _as_batch(leaf: Any) -> Array:
    return jnp.asarray(leaf)[None]


def as_score_fn(
    model: nn.Module, variables: Any, condition: Any = None, *, dropout_key: PRNGKey | None = None
) -> NetworkScore:
    """Return the score s(x, σ) of a batched network, for a single example.

    Under `jax.vmap` it is as fast as the batched call. A `jax.jit` function that takes it as an argument
    isn't recompiled when only the variables or the condition change.

    Args:
      model: a flax module with `__call__(x, sigma)`, x `(batch, *event)`, sigma `(batch,)`; with a condition,
        `__call__(x, sigma, condition)`.
      variables: its variables, `{"params": ...}`.
      condition: the condition of one example, a pytree of arrays or numbers without an axis of the batch;
        None is the null condition of networks with `conditions`.
      dropout_key: the key of dropout in training, the same at every call; None for no dropout.

    Returns:
      A `ScoreFn`, which is also a pytree. It raises a ValueError if x has no floating type.
    """
    return NetworkScore(model, variables, condition, dropout_key)
