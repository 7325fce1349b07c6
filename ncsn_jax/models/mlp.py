"""MLP, a small score network for vectors."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Float

from ncsn_jax.models.conditions import ConditionEmbedding, ConditionKind, GivenPart, Image, hashable, parts_of
from ncsn_jax.models.layers import Activation, sigma_of_batch, swish


class MLP(nn.Module):
    """A multilayer perceptron s(x, σ) for vectors, for any σ > 0.

    Its inputs are log σ and x/√(1 + σ²), which is of order one at every level if x₀ is. Its output is divided
    by σ, like the target of denoising. It is smooth in x and σ if the activation is smooth.

    Attributes:
      num_features: the width of each hidden layer.
      num_layers: the number of hidden layers.
      act: the activation; sliced and implicit score matching need a smooth one.
      scale_by_sigma: whether the output is divided by σ; `Preconditioned` takes a network without it.
      conditions: the kind of condition that the network takes, classes or vectors, whose embeddings are added
        to the first hidden layer; None for none.
    """

    num_features: int = 128
    num_layers: int = 3
    act: Activation = swish
    scale_by_sigma: bool = True
    conditions: ConditionKind | None = None

    def __post_init__(self) -> None:
        self.conditions = hashable(self.conditions)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch D"], sigma: Float[Array, " batch"], condition: Any = None
    ) -> Float[Array, "batch D"]:
        """Compute the scores of a batch of vectors.

        Args:
          x: perturbed vectors, `(batch, D)`.
          sigma: the noise level of each vector, `(batch,)`.
          condition: the condition of each vector, as `conditions` says; None is the null condition.

        Returns:
          Scores of the shape of x.

        Raises:
          ValueError: if x isn't a batch of vectors of a floating type, sigma isn't one number per vector, or
            the condition doesn't fit.
        """
        if x.ndim != 2:
            raise ValueError(f"MLP takes vectors, (batch, D), found an x of shape {x.shape}")
        given = self._given(condition, x)
        sigma = sigma_of_batch(x, sigma)[:, None]
        h = jnp.concatenate([x / jnp.sqrt(1.0 + jnp.square(sigma)), jnp.log(sigma)], axis=1)
        for layer in range(self.num_layers):
            h = nn.Dense(self.num_features)(h)
            if given and layer == 0:
                h = h + ConditionEmbedding(self.num_features, name="conditions")(given)
            h = self.act(h)
        h = nn.Dense(x.shape[1])(h)
        return h / sigma if self.scale_by_sigma else h

    def _given(self, condition: Any, x: Array) -> list[GivenPart]:
        given = parts_of(self.conditions, condition, x)
        if any(isinstance(part.kind, Image) for part in given) or (given and self.num_layers < 1):
            raise ValueError(
                f"conditions={self.conditions}: accepted: classes and vectors, with a hidden layer"
            )
        return given
