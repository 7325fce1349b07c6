"""From stored pixels to the network's images and back, on the device and for a single example."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Shaped, UInt8

from ncsn_jax.config import Data
from ncsn_jax.data.datasets import DatasetInfo
from ncsn_jax.typing import PRNGKey

LOGIT_MARGIN = 1e-6
"""λ: the logit is taken of λ + (1 − 2λ)x, for it has no value at 0 and 1."""


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


def add_gaussian(key: PRNGKey, image: UInt8[Array, "*event"], num_values: int) -> Float[Array, "*event"]:
    """Gaussian dequantization, k/(n − 1) + 0.01 z with z ~ N(0, I), as NCSNv2's code has it.

    Args:
      key: the example's key.
      image: k, pixels in 0 … n − 1.
      num_values: n, how many values a pixel can have.
    """
    return normalize(key, image, num_values) + 0.01 * jax.random.normal(key, image.shape)


def normalize(key: PRNGKey, image: UInt8[Array, "*event"], num_values: int) -> Float[Array, "*event"]:
    """No dequantization: k/(n − 1), from 0 to 1. Draws nothing from its key."""
    return image.astype(jnp.float32) / (num_values - 1)


def random_flip(key: PRNGKey, image: UInt8[Array, "h w c"]) -> UInt8[Array, "h w c"]:
    """The image, mirrored left to right with probability ½."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


class Transform(NamedTuple):
    """A map from images in [0, 1] to what the network is trained on, and the way back."""

    forward: Callable[[Array], Array]
    inverse: Callable[[Array], Array]


def _logit(x: Array) -> Array:
    x = LOGIT_MARGIN + (1 - 2 * LOGIT_MARGIN) * x
    return jnp.log(x) - jnp.log1p(-x)


TRANSFORMS = {
    "none": Transform(lambda x: x, lambda x: x),
    "rescale": Transform(lambda x: 2.0 * x - 1.0, lambda x: 0.5 * (x + 1.0)),
    "logit": Transform(_logit, lambda x: (jax.nn.sigmoid(x) - LOGIT_MARGIN) / (1 - 2 * LOGIT_MARGIN)),
}
"""By `config.data.transform`. The logit is the official codes', with their λ."""


def expected_image(settings: Data, info: DatasetInfo) -> Callable[[Float[ArrayLike, "*b"]], Any]:
    """What turns a picture in [0, 1], black to white, into the mean of its dequantizations.

    Args:
      settings: `config.data`.
      info: how many values n a pixel of the dataset can have: (v (n − 1) + ½)/n is the mean of a uniformly
        dequantized v = k/(n − 1).
    """
    n = info.num_values
    if settings.dequantization == "uniform" and n is not None:
        return lambda picture: (picture * (n - 1) + 0.5) / n
    return lambda picture: picture


def quantize(
    settings: Data, info: DatasetInfo
) -> Callable[[Float[np.ndarray, "*b"]], UInt8[np.ndarray, "*b"]]:
    """What turns images in [0, 1] into pixels 0 … n − 1, as their dequantization is undone.

    ⌊n x⌋ gives back k of (k + u)/n, and the nearest value to (n − 1) x gives back k of k/(n − 1); what lies
    outside is clipped. (To truncate (n − 1) x would darken all by half a grey value.)

    Args:
      settings: `config.data`.
      info: how many values n a pixel of the dataset can have.
    """
    n = info.num_values
    assert n is not None  # as of every image
    to_grid = {
        "uniform": lambda x: np.floor(n * x),
        "gaussian": lambda x: np.round((n - 1) * x),
        "none": lambda x: np.round((n - 1) * x),
    }[settings.dequantization]
    return lambda x: np.clip(to_grid(x), 0, n - 1).astype(np.uint8)


def as_bytes(pixels: UInt8[np.ndarray, "*b"], info: DatasetInfo) -> UInt8[np.ndarray, "*b"]:
    """Pixels 0 … n − 1 as those of a picture, 0 … 255."""
    assert info.num_values is not None
    return np.round(pixels * (255 / (info.num_values - 1))).astype(np.uint8)


def preprocessing(
    settings: Data, info: DatasetInfo
) -> Callable[[PRNGKey, Shaped[Array, "*event"]], Float[Array, "*event"]]:
    """What turns a stored example into the network's: images are dequantized and transformed, points stay.

    Args:
      settings: `config.data`.
      info: what the dataset stores.
    """
    if info.num_values is None:
        return lambda key, point: point
    dequantization = functools.partial(
        {"uniform": dequantize, "gaussian": add_gaussian, "none": normalize}[settings.dequantization],
        num_values=info.num_values,
    )
    transform = TRANSFORMS[settings.transform]
    return lambda key, image: transform.forward(dequantization(key, image))
