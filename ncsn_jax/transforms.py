"""Transforms of images in [0, 1] to the space of a network, and back."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

LOGIT_MARGIN = 1e-6
"""λ in the logit of λ + (1 − 2λ)x; it keeps the logit finite at x = 0 and x = 1."""


class Transform(NamedTuple):
    """A map from images in [0, 1] to the network's images, and its inverse."""

    forward: Callable[[Array], Array]
    inverse: Callable[[Array], Array]


def _logit(x: Array) -> Array:
    x = LOGIT_MARGIN + (1 - 2 * LOGIT_MARGIN) * x
    return jnp.log(x) - jnp.log1p(-x)


IDENTITY = Transform(lambda x: x, lambda x: x)
RESCALE = Transform(lambda x: 2.0 * x - 1.0, lambda x: 0.5 * (x + 1.0))
LOGIT = Transform(_logit, lambda x: (jax.nn.sigmoid(x) - LOGIT_MARGIN) / (1 - 2 * LOGIT_MARGIN))
"""The logit and its λ are the official codes'."""
