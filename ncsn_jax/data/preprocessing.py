"""Conversion of stored pixels to the network's images and back, on the device, for a single example."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Shaped, UInt8

from ncsn_jax.transforms import IDENTITY, Transform
from ncsn_jax.typing import PRNGKey


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """The facts about a dataset that are known without its files.

    Attributes:
      shape: the shape of one example: (height, width, channels) of an image, (D,) of a vector.
      num_values: n, the number of values of a pixel, 0 … n − 1; None for real numbers.
      dequantization: the map from pixels to numbers (see `Data.dequantization`).
      transform: the map from images in [0, 1], or from real numbers, to the network's space.
    """

    shape: tuple[int, ...]
    num_values: int | None
    dequantization: Literal["uniform", "gaussian", "none"] = "none"
    transform: Transform = IDENTITY


def dequantize(key: PRNGKey, image: UInt8[Array, "*event"], num_values: int) -> Float[Array, "*event"]:
    """Dequantize uniformly, (k + u)/n with u ~ U[0, 1): discrete pixels get a density on [0, 1].

    With 256 values this is the official code's x·255/256 + u/256 with x = k/255.

    Args:
      key: the example's key.
      image: k, pixels in 0 … n − 1.
      num_values: n, the number of values of a pixel.
    """
    noise = jax.random.uniform(key, image.shape)
    return (image.astype(jnp.float32) + noise) / num_values


def add_gaussian(key: PRNGKey, image: UInt8[Array, "*event"], num_values: int) -> Float[Array, "*event"]:
    """Dequantize with Gaussian noise, k/(n − 1) + 0.01 z with z ~ N(0, I), like NCSNv2's code.

    Args:
      key: the example's key.
      image: k, pixels in 0 … n − 1.
      num_values: n, the number of values of a pixel.
    """
    return normalize(key, image, num_values) + 0.01 * jax.random.normal(key, image.shape)


def normalize(key: PRNGKey, image: UInt8[Array, "*event"], num_values: int) -> Float[Array, "*event"]:
    """Scale pixels to k/(n − 1), from 0 to 1, without dequantization; the key is unused."""
    return image.astype(jnp.float32) / (num_values - 1)


def random_flip(key: PRNGKey, image: UInt8[Array, "h w c"]) -> UInt8[Array, "h w c"]:
    """Mirror the image left to right with probability ½."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def expected_image(info: DatasetInfo) -> Callable[[Float[ArrayLike, "*b"]], Any]:
    """Return a function from a picture in [0, 1], black to white, to the mean of its dequantizations.

    Args:
      info: the dataset's info: (v (n − 1) + ½)/n is the mean of a uniformly dequantized v = k/(n − 1).
    """
    n = info.num_values
    if info.dequantization == "uniform" and n is not None:
        return lambda picture: (picture * (n - 1) + 0.5) / n
    return lambda picture: picture


def quantize(info: DatasetInfo) -> Callable[[Float[np.ndarray, "*b"]], UInt8[np.ndarray, "*b"]]:
    """Return a function from images in [0, 1] to pixels 0 … n − 1, the inverse of dequantization.

    ⌊n x⌋ recovers k from (k + u)/n, and rounding (n − 1) x recovers k from k/(n − 1); values outside are
    clipped. (Truncating (n − 1) x would darken the image by half a grey value.)
    """
    n = info.num_values
    assert n is not None  # true of all images
    to_grid = {
        "uniform": lambda x: np.floor(n * x),
        "gaussian": lambda x: np.round((n - 1) * x),
        "none": lambda x: np.round((n - 1) * x),
    }[info.dequantization]
    return lambda x: np.clip(to_grid(x), 0, n - 1).astype(np.uint8)


def as_bytes(pixels: UInt8[np.ndarray, "*b"], info: DatasetInfo) -> UInt8[np.ndarray, "*b"]:
    """Return pixels 0 … n − 1 as 8-bit pixels, 0 … 255."""
    assert info.num_values is not None
    return np.round(pixels * (255 / (info.num_values - 1))).astype(np.uint8)


def preprocessing(info: DatasetInfo) -> Callable[[PRNGKey, Shaped[Array, "*event"]], Float[Array, "*event"]]:
    """Return a function that dequantizes and transforms a stored image, and transforms real numbers."""
    if info.num_values is None:
        return lambda key, x: info.transform.forward(x)
    dequantization = functools.partial(
        {"uniform": dequantize, "gaussian": add_gaussian, "none": normalize}[info.dequantization],
        num_values=info.num_values,
    )
    return lambda key, image: info.transform.forward(dequantization(key, image))
