"""Resampling of images by a factor of 2: FIR filters, or repeated pixels and means; also with a convolution.

All of it is batched, channels last, and acts on each channel by itself, with zeros outside of the image. A
filter is a kernel K with sum 1: `kernel_2d` of an outer product. `None` stands for repeated pixels and means.

Reference:
  Zhang 2019 (arXiv:1904.11486); Karras et al. 2020 (StyleGAN2, arXiv:1912.04958); Song et al. 2021
  (arXiv:2011.13456), appendix H.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jaxtyping import Float

from ncsn_jax.models.cpu import convolution
from ncsn_jax.models.layers import Images, conv, require_even_size

Kernel = tuple[float, ...] | tuple[tuple[float, ...], ...]
"""A filter of one axis, whose outer product with itself is taken, or of both."""


def kernel_2d(kernel: Kernel) -> Float[np.ndarray, "n n"]:
    """Return the kernel of both axes, normalised to the sum 1."""
    k = np.asarray(kernel, np.float64)
    k = np.outer(k, k) if k.ndim == 1 else k
    if not k.sum() > 0:
        raise ValueError(f"fir_kernel={kernel}: accepted: numbers with a positive sum")
    return k / k.sum()


@functools.partial(jax.jit, static_argnames=("kernel", "padding", "gain", "stride"))
def fir(x: Images, kernel: Kernel, padding: tuple[int, int], *, gain: float = 1.0, stride: int = 1) -> Images:
    """Convolve every channel with gain·K, and keep each `stride`-th pixel.

    Args:
      x: the images.
      kernel: the filter.
      padding: the number of zeros before and after each axis; a negative number crops.
      gain: the factor of the kernel.
      stride: the step between the pixels that are kept.
    """
    k = gain * kernel_2d(kernel)
    n = len(k)
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (*padding, 0), (*padding, 0), (0, 0, 0)))
    height, width = ((size - n) // stride + 1 for size in x.shape[1:3])
    # A sum of shifted images: XLA fuses it to one loop, and has no fast convolution by channels.
    terms = (
        k[n - 1 - i, n - 1 - j].astype(x.dtype)
        * x[:, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride]
        for i, j in itertools.product(range(n), repeat=2)
    )
    return sum(terms, start=jnp.zeros((), x.dtype))


@functools.partial(jax.jit, static_argnames="kernel")
def fir_up(x: Images, kernel: Kernel) -> Images:
    """Double an image: zeros between its pixels, then the filter 4·K."""
    k = 4.0 * kernel_2d(kernel)
    n = len(k)
    before = (n - 1) // 2 + 1
    # A pixel of the result sees each second entry of the kernel, by its parity; the others meet zeros.
    seen = [
        [((r + t - before) // 2, n - 1 - t) for t in range(n) if (r + t - before) % 2 == 0] for r in (0, 1)
    ]
    first = min(min(shift for shift, _ in taps) for taps in seen if taps)
    last = max(max(shift for shift, _ in taps) for taps in seen if taps)
    height, width = x.shape[1:3]
    margin = (-min(first, 0), max(last, 0))
    padded = jnp.pad(x, ((0, 0), margin, margin, (0, 0)))

    def shifted(a: int, b: int) -> Array:
        a, b = a + margin[0], b + margin[0]
        return padded[:, a : a + height, b : b + width]

    phases = [
        sum(
            (k[i, j].astype(x.dtype) * shifted(a, b) for (a, i), (b, j) in itertools.product(rows, columns)),
            start=jnp.zeros((), x.dtype),
        )
        for rows, columns in itertools.product(seen, repeat=2)
    ]
    return _interleaved(*phases)


def _interleaved(*phases: Images) -> Images:
    """The image whose 2×2 blocks hold a pixel of each of four images."""
    batch, height, width, channels = phases[0].shape
    blocks = jnp.stack(phases, axis=3).reshape(batch, height, width, 2, 2, channels)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, channels)


def up(x: Images, kernel: Kernel | None) -> Images:
    """Double an image by a filter; with None, each pixel becomes a 2×2 block."""
    return _interleaved(x, x, x, x) if kernel is None else fir_up(x, kernel)


def down(x: Images, kernel: Kernel | None) -> Images:
    """Halve an image by a filter; with None, each 2×2 block becomes its mean.

    Raises:
      ValueError: if the height or the width is odd.
    """
    require_even_size(x)
    if kernel is None:
        return nn.avg_pool(x, (2, 2), strides=(2, 2))
    p = len(kernel) - 2
    return fir(x, kernel, ((p + 1) // 2, p // 2), stride=2)


def down_conv(x: Images, features: int, kernel: Kernel | None, **options: Any) -> Images:
    """Halve an image by a 3×3 convolution with stride 2 of the filtered image.

    Args:
      x: the image.
      features: the number of channels of the result.
      kernel: the filter; with None, the image is padded at the bottom and on the right alone.
      **options: options of `conv`.

    Raises:
      ValueError: if the height or the width is odd.
    """
    require_even_size(x)
    if kernel is None:
        x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    else:
        p = len(kernel)
        x = fir(x, kernel, ((p + 1) // 2, p // 2))
    return conv(x, features, strides=2, padding="VALID", name=conv_name(kernel), **options)


def up_conv(x: Images, features: int, kernel: Kernel | None, **options: Any) -> Images:
    """Double an image by a 3×3 convolution of the image with zeros between its pixels, then filter it.

    Args:
      x: the image.
      features: the number of channels of the result.
      kernel: the filter; with None, the convolution is of an image of repeated pixels.
      **options: options of `conv`.
    """
    if kernel is None:
        return conv(up(x, None), features, name=conv_name(kernel), **options)

    def filtered(x, weight, *_, dimension_numbers, **__):  # the bias comes after the filter
        padding = ((2, 2), (2, 2))
        h = convolution(x, weight, (1, 1), padding, (2, 2), dimension_numbers=dimension_numbers)
        p = len(kernel) - 4
        return fir(h, kernel, ((p + 1) // 2 + 1, p // 2 + 1), gain=4.0)

    return conv(x, features, name=conv_name(kernel), conv_general_dilated=filtered, **options)


def conv_name(kernel: Kernel | None) -> str:
    """The name that the release gives to a convolution with this filter."""
    return "Conv_0" if kernel is None else "Conv2d_0"
