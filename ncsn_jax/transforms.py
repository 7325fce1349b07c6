"""Transforms of images in [0, 1], or of numbers, to the space of a network, and back."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

LOGIT_MARGIN = 1e-6
"""λ in the logit of λ + (1 − 2λ)x; it keeps the logit finite at x = 0 and x = 1."""


class Transform(NamedTuple):
    """A map from the units of the data (images: [0, 1]) to the network's space, and its inverse."""

    forward: Callable[[Array], Array]
    inverse: Callable[[Array], Array]


def _logit(x: Array) -> Array:
    x = LOGIT_MARGIN + (1 - 2 * LOGIT_MARGIN) * x
    return jnp.log(x) - jnp.log1p(-x)


@functools.cache
def affine(offset: tuple[float, ...], scale: tuple[float, ...]) -> Transform:
    """Return the map x ↦ (x − offset)/scale of each channel; equal arguments give the same object.

    Args:
      offset: the number that becomes 0, for each element of the last axis.
      scale: the difference that becomes 1, likewise.
    """

    def along(x: Array, values: tuple[float, ...]) -> Array:
        return jnp.broadcast_to(jnp.array(values, x.dtype), x.shape)

    return Transform(
        lambda x: (x - along(x, offset)) / along(x, scale),
        lambda x: x * along(x, scale) + along(x, offset),
    )


IDENTITY = Transform(lambda x: x, lambda x: x)
RESCALE = Transform(lambda x: 2.0 * x - 1.0, lambda x: 0.5 * (x + 1.0))
LOGIT = Transform(_logit, lambda x: (jax.nn.sigmoid(x) - LOGIT_MARGIN) / (1 - 2 * LOGIT_MARGIN))
"""The logit and its λ are the official codes'."""
