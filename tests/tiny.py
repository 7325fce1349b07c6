"""Objects of one's own for tests: networks that compile within a second."""

import jax.numpy as jnp
from flax import linen as nn


class TinyScore(nn.Module):
    """A score network of one hidden convolution, with discrete levels."""

    sigmas: tuple[float, ...] = (1.0, 0.1)

    @nn.compact
    def __call__(self, x, sigma):
        h = nn.tanh(nn.Conv(4, (3, 3))(x))
        return nn.Conv(x.shape[-1], (3, 3))(h) / sigma[:, None, None, None]


class SmoothScore(nn.Module):
    """A smooth network for any σ, in one convolution."""

    @nn.compact
    def __call__(self, x, sigma):
        return -nn.Conv(1, (3, 3))(nn.tanh(x)) / jnp.square(1.0 + sigma)[:, None, None, None]


class ConditionalScore(nn.Module):
    """A smooth network for any σ, which adds a number for each of ten classes; −1 is none."""

    @nn.compact
    def __call__(self, x, sigma, condition=None):
        condition = jnp.full(x.shape[:1], -1) if condition is None else condition
        number = nn.Embed(11, 1)(condition % 11)[:, None, None]
        return (number - nn.Conv(1, (3, 3))(nn.tanh(x))) / jnp.square(1.0 + sigma)[:, None, None, None]
