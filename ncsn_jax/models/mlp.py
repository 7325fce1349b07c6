"""MLP, a small score network for vectors."""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Float

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
    """

    num_features: int = 128
    num_layers: int = 3
    act: Activation = swish
    scale_by_sigma: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "batch D"], sigma: Float[Array, " batch"]) -> Float[Array, "batch D"]:
        """Compute the scores of a batch of vectors.

        Args:
          x: perturbed vectors, `(batch, D)`.
          sigma: the noise level of each vector, `(batch,)`.

        Returns:
          Scores of the shape of x.

        Raises:
          ValueError: if x isn't a batch of vectors of a floating type, or sigma isn't one number per vector.
        """
        if x.ndim != 2:
            raise ValueError(f"MLP takes vectors, (batch, D), found an x of shape {x.shape}")
        sigma = sigma_of_batch(x, sigma)[:, None]
        h = jnp.concatenate([x / jnp.sqrt(1.0 + jnp.square(sigma)), jnp.log(sigma)], axis=1)
        for _ in range(self.num_layers):
            h = self.act(nn.Dense(self.num_features)(h))
        h = nn.Dense(x.shape[1])(h)
        return h / sigma if self.scale_by_sigma else h
