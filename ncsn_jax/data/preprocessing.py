"""From stored pixels to the network's images, on the device and for a single example."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, UInt8

from ncsn_jax.typing import PRNGKey


def dequantize(key: PRNGKey, image: UInt8[Array, "*event"], num_values: int) -> Float[Array, "*event"]:
    """Uniform dequantization, (k + u)/n with u ~ U[0, 1): discrete pixels as a density on [0, 1].

    For 256 values it is the official code's x·255/256 + u/256 with x = k/255.

    Args:
      key: the example's key.
      image: k, pixels in 0 … n − 1.
      num_values: n, how many values a pixel can have.
    """
    noise = jax.random.uniform(key, image.shape)
    return (image.astype(jnp.float32) + noise) / num_values


def random_flip(key: PRNGKey, image: UInt8[Array, "h w c"]) -> UInt8[Array, "h w c"]:
    """The image, mirrored left to right with probability ½."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)
