"""Blocks of the U-Nets of Song et al. 2021: embeddings of the noise, residual blocks, attention, pyramids.

All of them are batched, channels last. Submodules are named after the release's modules, so that the names
in a checkpoint map one to one to paths of the parameter tree (`ncsn_jax.interop`). A `norm` is
`group_norm` with its number of groups.

Reference:
  Song et al. 2021 (arXiv:2011.13456), appendix H; Ho et al. 2020 (arXiv:2006.11239), appendix B.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Float

from ncsn_jax.models.cpu import computed_once
from ncsn_jax.models.layers import (
    FROZEN,
    Activation,
    Images,
    Initializer,
    conv,
    in_float32,
    pixel_mean,
)
from ncsn_jax.models.resampling import Kernel

Time = Float[Array, "batch features"]
"""Embedded noise level of each image."""
Norm = Callable[..., Any]


def scaled(scale: float) -> Initializer:
    """Return the initialisation U(±√(3·scale/fan)), with fan the mean of inputs and outputs.

    Args:
      scale: the variance, times the fan; 0 stands for 1e-10, so that "zero" layers have a gradient.
    """
    return nn.initializers.variance_scaling(scale or 1e-10, "fan_avg", "uniform")


def unet_conv(x: Images, features: int, *, scale: float = 1.0, **options: Any) -> Images:
    """Convolve with a kernel from `scaled(scale)` and a bias of zeros; the rest are options of `conv`."""
    return conv(x, features, kernel_init=scaled(scale), bias_init=nn.initializers.zeros, **options)


def dense(x: Array, features: int, *, scale: float = 1.0, name: str) -> Array:
    """Map the last axis linearly, in the type of x."""
    return nn.Dense(features, dtype=x.dtype, kernel_init=scaled(scale), name=name)(x)


def group_norm(x: Images, *, num_groups: int | None, name: str) -> Images:
    """Normalise groups of consecutive channels, over the group's channels and all pixels.

    Args:
      x: the features.
      num_groups: the number of groups; None for a fourth of the channels, at most 32.
      name: the name of the layer.

    Raises:
      ValueError: if the channels can't be divided into so many groups.
    """
    channels = x.shape[-1]
    num_groups = min(channels // 4, 32) if num_groups is None else num_groups
    if num_groups < 1 or channels % num_groups:
        raise ValueError(
            f"{channels} channels can't be divided into {num_groups} groups of channels; use a multiple "
            "of 4 below 128 and of 32 above, or of num_groups"
        )
    return GroupNorm(num_groups, name=name)(x)


class GroupNorm(nn.Module):
    """`normalised` with a learned scale and bias of each channel."""

    num_groups: int

    @nn.compact
    def __call__(self, x: Images) -> Images:
        channels = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        return normalised(x, *(jnp.asarray(v)[None, None, None] for v in (scale, bias)), self.num_groups)


@functools.partial(jax.jit, static_argnames="num_groups")
def normalised(x: Images, scale: Array, bias: Array, num_groups: int) -> Images:
    """Compute scale·(x − μ)/√(Var[x] + 1e-6) + bias, with μ and the variance of groups of channels.

    Means are taken over pixels, then over a group's channels: XLA for CPUs is slow at both in one sum.
    """
    features = in_float32(x)

    def group_mean(values: Array) -> Array:
        groups = pixel_mean(values).reshape(x.shape[0], 1, 1, num_groups, -1)
        means = jnp.broadcast_to(jnp.mean(groups, axis=-1, keepdims=True), groups.shape)
        return means.reshape(x.shape[0], 1, 1, -1)

    mean = computed_once(group_mean(features))
    factor = scale * jax.lax.rsqrt(group_mean((features - mean) ** 2) + 1e-6)
    offset = bias - factor * mean
    return (computed_once(factor) * x + computed_once(offset)).astype(x.dtype)


class FourierFeatures(nn.Module):
    """sin and cos of 2π·W·ln σ, with fixed random frequencies W ~ N(0, scale²): shape `(batch, 2·features)`.

    The frequencies are parameters that no training changes.
    """

    features: int
    scale: float

    @nn.compact
    def __call__(self, sigma: Float[Array, " batch"]) -> Time:
        name = f"{FROZEN}frequencies"
        frequencies = self.param(name, nn.initializers.normal(self.scale), (self.features,))
        frequencies = jax.lax.stop_gradient(frequencies).astype(sigma.dtype)
        angle = jnp.log(sigma)[:, None] * frequencies[None, :] * 2.0 * math.pi
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)


def positional_features(label: Float[Array, " batch"], features: int) -> Time:
    """sin and cos of label·10000^(−j/(h−1)), j = 0, …, h−1, with h = ⌊features/2⌋; a zero if one is left."""
    half = features // 2
    frequencies = jnp.exp(jnp.arange(half, dtype=label.dtype) * (-math.log(10_000) / (half - 1)))
    angle = label[:, None] * frequencies[None, :]
    embedded = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)
    return jnp.pad(embedded, ((0, 0), (0, features % 2)))


def merged(x: Images, h: Images, *, skip_rescale: bool) -> Images:
    """x + h; divided by √2 if `skip_rescale`, which keeps the variance."""
    return (x + h) * jnp.asarray(math.sqrt(0.5), x.dtype) if skip_rescale else x + h


class ResidualBlock(nn.Module):
    """Two normalised convolutions and a shortcut, with the embedded noise level added between them.

    Attributes:
      features: the number of channels of the result.
      block: `biggan`, whose shortcut is a 1×1 convolution, or `ddpm`, whose shortcut is a linear map with
        smaller initial weights.
      resample: resampling of both branches after the first activation; None for none.
      norm: the normalisation.
      act: the activation.
      init_scale: the scale of the last convolution's initial weights.
      skip_rescale: whether the sum is divided by √2.
      dropout: the rate of dropout before the last convolution; active where there is a key for it.
    """

    features: int
    block: Literal["biggan", "ddpm"]
    norm: Norm
    act: Activation
    init_scale: float
    skip_rescale: bool
    dropout: float
    resample: Callable[[Images], Images] | None = None

    @nn.compact
    def __call__(self, x: Images, time: Time) -> Images:
        h = self.act(self.norm(x, name="GroupNorm_0"))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = unet_conv(h, self.features, name="Conv_0")
        shift = dense(self.act(time), self.features, name="Dense_0")
        h = h + shift[:, None, None, :].astype(h.dtype)
        h = self.act(self.norm(h, name="GroupNorm_1"))
        h = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(h)
        h = unet_conv(h, self.features, scale=self.init_scale, name="Conv_1")
        if x.shape[-1] != self.features or self.resample is not None:
            if self.block == "biggan":
                x = unet_conv(x, self.features, kernel_size=1, name="Conv_2")
            else:
                x = dense(x, self.features, scale=0.1, name="NIN_0")
        return merged(x, h, skip_rescale=self.skip_rescale)


class Attention(nn.Module):
    """Attention between all pixels, with one head, and a shortcut."""

    norm: Norm
    init_scale: float
    skip_rescale: bool

    @nn.compact
    def __call__(self, x: Images) -> Images:
        channels = x.shape[-1]
        h = self.norm(x, name="GroupNorm_0").reshape(x.shape[0], -1, 1, channels)
        query, key, value = (dense(h, channels, scale=0.1, name=f"NIN_{i}") for i in range(3))
        h = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
        h = dense(h, channels, scale=self.init_scale, name="NIN_3")
        return merged(x, h, skip_rescale=self.skip_rescale)


class Combine(nn.Module):
    """The image at this size, mapped to the channels of h, beside h (`cat`) or added to it (`sum`)."""

    method: Literal["sum", "cat"]

    @nn.compact
    def __call__(self, image: Images, h: Images) -> Images:
        image = unet_conv(image, h.shape[-1], kernel_size=1, name="Conv_0")
        return jnp.concatenate([image, h], axis=-1) if self.method == "cat" else image + h


class Resample(nn.Module):
    """A resampling with a convolution, `down_conv` or `up_conv`, as a module with its own parameters.

    Attributes:
      convolve: `down_conv` or `up_conv`.
      features: the number of channels of the result.
      kernel: the filter; None for none.
    """

    convolve: Callable[..., Images]
    features: int
    kernel: Kernel | None

    @nn.compact
    def __call__(self, x: Images) -> Images:
        init = {"kernel_init": scaled(1.0), "bias_init": nn.initializers.zeros}
        return self.convolve(x, self.features, self.kernel, **init)
