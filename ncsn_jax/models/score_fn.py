"""The single-example view of a network."""

from typing import Any

from flax import linen as nn
from flax import struct
from jax import Array
from jaxtyping import Float

from ncsn_jax.dtypes import floating, scalars
from ncsn_jax.typing import Scalar


@struct.dataclass
class NetworkScore:
    """A network and its variables as a `ScoreFn`; a pytree whose leaves are the variables."""

    model: nn.Module = struct.field(pytree_node=False)
    variables: Any

    @property
    def sigmas(self) -> tuple[float, ...] | None:
        """The discrete levels that the network embeds; None if it takes any σ."""
        return getattr(self.model, "sigmas", None)

    def __call__(self, x: Float[Array, "*event"], sigma: Scalar) -> Float[Array, "*event"]:
        x = floating(x)
        (sigma,) = scalars(x, sigma)
        score: Any = self.model.apply(self.variables, x[None], sigma[None])
        return score[0].astype(x.dtype)


def as_score_fn(model: nn.Module, variables: Any) -> NetworkScore:
    """Return the score s(x, σ) of a batched network, for a single example.

    Under `jax.vmap` it is as fast as the batched call. A `jax.jit` function that takes it as an argument
    isn't recompiled when only the variables change.

    Args:
      model: a flax module with `__call__(x, sigma)`, x `(batch, *event)`, sigma `(batch,)`.
      variables: its variables, `{"params": ...}`.

    Returns:
      A `ScoreFn`, which is also a pytree. It raises a ValueError if x has no floating type.
    """
    return NetworkScore(model, variables)
