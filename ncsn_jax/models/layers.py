"""Blocks of the official score networks: convolutions, InstanceNorm++ and the parts of the RefineNet.

All of them are batched, channels last: `(batch, height, width, channels)`. Submodules are named after the
official PyTorch modules, so the names in a checkpoint map one to one to paths of the parameter tree
(`ncsn_jax.interop`). A `norm` creates a normalisation: `norm(name=...)(x, level)`, where the level is None in
a network without levels.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Float, Int

from ncsn_jax.dtypes import scalars
from ncsn_jax.models.cpu import PIXELS, computed_once, convolution, level_rows

Images = Float[Array, "batch _height _width _channels"]
"""Images or features of any size: axes named with an underscore may differ between arguments and result."""


class LevelAndClass(NamedTuple):
    """The noise level of each image and its row in tables of classes."""

    level: Int[Array, " batch"]
    class_row: Int[Array, " batch"]


Levels = Int[Array, " batch"] | LevelAndClass | None
"""The noise level of each image, for conditional normalisations."""
Pool = Callable[[Array], Array]
Norm = Callable[..., Any]
Activation = Callable[[Array], Array]
Initializer = nn.initializers.Initializer

EPSILON = 1e-5
"""ε, which every normalisation adds to a variance."""
FROZEN = "frozen_"
"""Prefix of the names of parameters that training leaves at the values that they begin with."""
CHANNELS = (3,)
"""The axis of `Images` with the channels; `PIXELS` are the axes before."""


def sigma_of_batch(x: Array, sigma: Any) -> Float[Array, " batch"]:
    """Return the noise level of each example in at least float32, whatever the type of sigma.

    Raises:
      ValueError: if x has no floating type, or there isn't one level for each example.
    """
    (sigma,) = scalars(x, sigma)
    if sigma.shape != x.shape[:1]:
        raise ValueError(f"sigma must be one number for each example, {x.shape[:1]}, found {sigma.shape}")
    return sigma


# Activations are plain functions: jax's own are compiled, and can't be pickled with a network.


def elu(x: Array) -> Array:
    """x for x > 0, else eˣ − 1."""
    return nn.elu(x)


def relu(x: Array) -> Array:
    """max(x, 0)."""
    return nn.relu(x)


def leaky_relu(x: Array) -> Array:
    """x for x > 0, else x/5, as in the official code."""
    return nn.leaky_relu(x, negative_slope=0.2)


def swish(x: Array) -> Array:
    """x/(1 + e⁻ˣ)."""
    return nn.swish(x)


def uniform(key, shape, dtype=jnp.float32, *, bound):
    """Draw from U(−bound, bound)."""
    # Drawn flat, then reshaped: the same values, from a program that compiles in a quarter of the time.
    return jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound).reshape(shape)


def near_one(key, shape, dtype=jnp.float32):
    """Draw from N(1, 0.02²), the initial scales of the normalisations."""
    return 1.0 + 0.02 * jax.random.normal(key, shape, dtype)


def conv(
    x: Images,
    features: int,
    *,
    name: str,
    kernel_size: int = 3,
    dilation: int = 1,
    use_bias: bool = True,
    kernel_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    conv_general_dilated: Callable[..., Array] = convolution,
    **options: Any,
) -> Images:
    """Convolve, keeping the image's size; it computes in the type of x, whatever the type of its parameters.

    Args:
      x: the features.
      features: the number of channels of the result.
      name: the name of the layer.
      kernel_size: the height and width of the kernel.
      dilation: the step between the pixels that the kernel sees.
      use_bias: whether a bias is added.
      kernel_init: the distribution of the kernel; by default PyTorch's, U(±1/√fan_in).
      bias_init: the distribution of the bias, with the same default.
      conv_general_dilated: the convolution before the bias, with the arguments of `convolution`.
      **options: other fields of `flax.linen.Conv`, which may change the image's size.
    """
    init = functools.partial(uniform, bound=(x.shape[-1] * kernel_size**2) ** -0.5)
    convolve = nn.Conv(
        features,
        (kernel_size, kernel_size),
        kernel_dilation=dilation,
        use_bias=use_bias,
        dtype=x.dtype,
        kernel_init=kernel_init or init,
        bias_init=bias_init or init,
        conv_general_dilated=conv_general_dilated,
        name=name,
        **options,
    )
    return computed_once(convolve(computed_once(x)))


def require_even_size(x: Images) -> None:
    """Refuse images that can't be halved.

    Raises:
      ValueError: if the height or the width is odd.
    """
    if x.shape[1] % 2 or x.shape[2] % 2:
        raise ValueError(
            "the network halves images by 2×2 blocks: height and width must be even there, "
            f"found {x.shape[1]}×{x.shape[2]} pixels"
        )


# Both windows are separable: pooling along columns, then along rows, takes less than half the cost.


@jax.jit
def average_pool5(x: Images) -> Images:
    """The mean of every pixel's 5×5 neighbourhood, padding zeros included."""
    return nn.avg_pool(nn.avg_pool(x, (5, 1), padding="SAME"), (1, 5), padding="SAME")


@jax.jit
def max_pool5(x: Images) -> Images:
    """The maximum of every pixel's 5×5 neighbourhood."""
    return nn.max_pool(nn.max_pool(x, (5, 1), padding="SAME"), (1, 5), padding="SAME")


@functools.partial(jax.jit, static_argnames=("height", "width"))
def resize_bilinear(x: Images, height: int, width: int) -> Images:
    """Resize bilinearly with aligned corners: output i of n reads the input at i·(m−1)/(n−1) of m."""

    def scale(size: int, new_size: int) -> float:
        # One pixel has no second corner to align; this scale keeps all reads within its half-width.
        return (new_size - 1) / (size - 1) if size > 1 and new_size > 1 else 2.0 * new_size

    if x.shape[1:3] == (height, width):
        return x
    scales = jnp.array([scale(x.shape[1], height), scale(x.shape[2], width)])
    # scale_and_translate places pixel centres at i + ½; this shift aligns the first centres.
    translation = 0.5 - 0.5 * scales
    shape = (x.shape[0], height, width, x.shape[3])
    return jax.image.scale_and_translate(x, shape, (1, 2), scales, translation, "linear", antialias=False)


def pixel_mean(x: Array) -> Array:
    """The mean of each channel over its pixels, `(batch, 1, 1, channels)`."""
    return jnp.mean(x, axis=PIXELS, keepdims=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def inverse_deviation(x: Array, axes: tuple[int, ...], ddof: int = 0) -> Array:
    """r = 1/√(Var[x] + ε) over some axes of `Images`, which are kept with size 1.

    Its derivative is −r³·Cov[x, dx]. The derivative of the mean adds nothing, but jax's own rule would sum
    over the pixels once more to compute it.
    """
    return jax.lax.rsqrt(jnp.var(x, axis=axes, keepdims=True, ddof=ddof) + EPSILON)


@inverse_deviation.defjvp
def _inverse_deviation_jvp(axes, ddof, primals, tangents):
    (x,), (dx,) = primals, tangents
    r = inverse_deviation(x, axes, ddof)
    deviation = x - jnp.mean(x, axis=axes, keepdims=True)
    degrees_of_freedom = math.prod(x.shape[axis] for axis in axes) - ddof
    return r, -(r**3) * jnp.sum(deviation * dx, axis=axes, keepdims=True) / degrees_of_freedom


def in_float32(x: Array) -> Array:
    """Return x in float32 or wider, the type of statistics."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@jax.jit
def instance_norm(x: Images, gamma: Array, beta: Array) -> Images:
    """γ·(x − μ)/√(Var[x] + ε) + β, with the mean μ and the variance of each channel over its pixels.

    Args:
      x: the features.
      gamma: γ, which broadcasts against x.
      beta: β, which broadcasts against x.
    """
    features = in_float32(x)
    scale = gamma * inverse_deviation(features, PIXELS)
    offset = beta - scale * pixel_mean(features)
    return (computed_once(scale) * x + computed_once(offset)).astype(x.dtype)


@jax.jit
def instance_norm_plus(x: Images, gamma: Array, alpha: Array, beta: Array) -> Images:
    """InstanceNorm++: instance normalisation that keeps the information in the channel means.

    With μ the mean of each channel over its pixels, and t = (μ − E[μ]) / √(Var[μ] + ε) over the channels (the
    unbiased variance), it computes γ·((x − μ)/√(Var[x] + ε) + α·t) + β.

    Args:
      x: the features.
      gamma: γ, which broadcasts against x.
      alpha: α, which broadcasts against x.
      beta: β, which broadcasts against x.

    Reference:
      Song & Ermon 2019 (arXiv:1907.05600), appendix A.1.
    """
    mean = pixel_mean(in_float32(x))
    deviation = mean - jnp.mean(mean, axis=CHANNELS, keepdims=True)
    shift = deviation * inverse_deviation(mean, CHANNELS, 1)
    return instance_norm(x, gamma, gamma * alpha * shift + beta)


class RowEmbedding(nn.Module):
    """Learned coefficients of each channel for each noise level, or class: the `level_rows` of a table."""

    num_rows: int
    channels: int
    parts: int
    table_init: Initializer

    @nn.compact
    def __call__(self, row: Int[Array, " batch"]) -> list[Array]:
        table = self.param("embedding", self.table_init, (self.num_rows, self.parts * self.channels))
        return level_rows(table, row, self.parts)


def coefficients(
    level: Levels, num_scales: int, num_classes: int | None, channels: int, parts: int, init: Initializer
) -> list[Array]:
    """Return the coefficients of a conditional normalisation, inside the `__call__` of its module.

    A class adds its own row, zero at first, to the row of the noise level.
    """
    of_level = RowEmbedding(num_scales, channels, parts, init, name="embed")
    if not isinstance(level, LevelAndClass):
        assert level is not None  # conditional normalisations have a level
        return of_level(level)
    assert num_classes is not None
    of_class = RowEmbedding(num_classes + 1, channels, parts, nn.initializers.zeros, name="embed_class")
    return jax.tree.map(jnp.add, of_level(level.level), of_class(level.class_row))


class InstanceNormPlus(nn.Module):
    """`instance_norm_plus` with learned γ, α and β, the same at every noise level."""

    @nn.compact
    def __call__(self, x: Images, level: Levels = None) -> Images:
        channels = (x.shape[-1],)
        alpha = self.param("alpha", near_one, channels)
        gamma = self.param("gamma", near_one, channels)
        beta = self.param("beta", nn.initializers.zeros, channels)
        return instance_norm_plus(x, *(jnp.asarray(v)[None, None, None] for v in (gamma, alpha, beta)))


class ConditionalInstanceNormPlus(nn.Module):
    """`instance_norm_plus` with γ, α and β learned for every noise level, and for every class, if any."""

    num_scales: int
    num_classes: int | None = None

    @nn.compact
    def __call__(self, x: Images, level: Levels) -> Images:
        channels = x.shape[-1]

        def init(key, shape, dtype=jnp.float32):
            scale = near_one(key, (shape[0], 2 * channels), dtype)
            return jnp.concatenate([scale, jnp.zeros((shape[0], channels), dtype)], axis=1)

        return instance_norm_plus(
            x, *coefficients(level, self.num_scales, self.num_classes, channels, 3, init)
        )


class ConditionalInstanceNorm(nn.Module):
    """γ·instance_norm(x) + β with γ and β learned for every noise level, and class (Dumoulin et al. 2017).

    The normalisation of the official `CondRefineNetDeeperDilated`.
    """

    num_scales: int
    num_classes: int | None = None

    @nn.compact
    def __call__(self, x: Images, level: Levels) -> Images:
        channels = x.shape[-1]

        def init(key, shape, dtype=jnp.float32):
            scale = jax.random.uniform(key, (shape[0], channels), dtype)
            return jnp.concatenate([scale, jnp.zeros_like(scale)], axis=1)

        return instance_norm(x, *coefficients(level, self.num_scales, self.num_classes, channels, 2, init))


class VarianceNorm(nn.Module):
    """α·x/√(Var[x] + ε) over the pixels of each channel (the unbiased variance): an option of NCSNv2."""

    @nn.compact
    def __call__(self, x: Images, level: Levels = None) -> Images:
        alpha = self.param("alpha", near_one, (x.shape[-1],))
        scale = alpha[None, None, None] * inverse_deviation(in_float32(x), PIXELS, 1)
        return (computed_once(scale) * x).astype(x.dtype)


def no_norm(name: str) -> Callable[[Images, Levels], Images]:
    """The `norm` of blocks without normalisation."""
    return lambda x, level: x


class MeanPoolConv(nn.Module):
    """A convolution, then the mean of every 2×2 block of pixels: the network's only downsampling."""

    features: int
    kernel_size: int

    @nn.compact
    def __call__(self, x: Images) -> Images:
        require_even_size(x)
        x = conv(x, self.features, kernel_size=self.kernel_size, name="conv")
        return nn.avg_pool(x, (2, 2), strides=(2, 2))


class ResidualBlock(nn.Module):
    """The sum of two successive normalised convolutions and a shortcut.

    `down` blocks widen the channels in their second convolution. Without dilation they halve the image; with
    dilation they keep its size and only enlarge their field of view.
    """

    features: int
    norm: Norm
    act: Activation
    down: bool = False
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Images, level: Levels) -> Images:
        def out(x: Images, kernel_size: int, name: str) -> Images:
            if self.down and self.dilation == 1:
                return MeanPoolConv(self.features, kernel_size, name=name)(x)
            return conv(x, self.features, dilation=self.dilation, name=name)

        h = self.act(self.norm(name="normalize1")(x, level))
        h = conv(h, x.shape[-1], dilation=self.dilation, name="conv1")
        h = self.act(self.norm(name="normalize2")(h, level))
        h = out(h, 3, "conv2")
        return h + (out(x, 1, "shortcut") if self.down else x)


class RCUBlock(nn.Module):
    """Residual convolution units: x + two normalised convolutions of x, `num_blocks` times."""

    norm: Norm
    act: Activation
    num_blocks: int

    @nn.compact
    def __call__(self, x: Images, level: Levels) -> Images:
        for block in range(1, self.num_blocks + 1):
            h = x
            for stage in (1, 2):
                h = self.act(self.norm(name=f"{block}_{stage}_norm")(h, level))
                h = conv(h, x.shape[-1], use_bias=False, name=f"{block}_{stage}_conv")
            x = x + h
        return x


class CRPBlock(nn.Module):
    """Chained residual pooling: the sum of context pooled over ever larger windows."""

    norm: Norm
    act: Activation
    pool: Pool

    @nn.compact
    def __call__(self, x: Images, level: Levels) -> Images:
        x = self.act(x)
        path = x
        for stage in (0, 1):
            path = self.pool(self.norm(name=f"norms_{stage}")(path, level))
            path = conv(path, x.shape[-1], use_bias=False, name=f"convs_{stage}")
            x = x + path
        return x


class MSFBlock(nn.Module):
    """Multi-scale fusion: the sum of all inputs, each convolved and resized to the first one's size."""

    features: int
    norm: Norm

    @nn.compact
    def __call__(self, inputs: Sequence[Images], level: Levels) -> Images:
        height, width = inputs[0].shape[1:3]
        total = jnp.zeros((), inputs[0].dtype)
        for i, x in enumerate(inputs):
            h = conv(self.norm(name=f"norms_{i}")(x, level), self.features, name=f"convs_{i}")
            total = total + resize_bilinear(h, height, width)
        return total


class RefineBlock(nn.Module):
    """One block of the refine chain, which adapts and fuses its inputs, pools context and convolves again.

    Reference:
      Lin et al. 2017 (RefineNet, arXiv:1611.06612), with the changes of Song & Ermon 2019, appendix A.
    """

    features: int
    norm: Norm
    act: Activation
    pool: Pool
    num_output_blocks: int

    @nn.compact
    def __call__(self, inputs: Sequence[Images], level: Levels) -> Images:
        norm, act = self.norm, self.act
        adapted = [
            RCUBlock(norm, act, num_blocks=2, name=f"adapt_convs_{i}")(x, level) for i, x in enumerate(inputs)
        ]
        if len(adapted) == 1:
            (x,) = adapted
        else:
            x = MSFBlock(self.features, norm, name="msf")(adapted, level)
        x = CRPBlock(norm, act, self.pool, name="crp")(x, level)
        return RCUBlock(norm, act, self.num_output_blocks, name="output_convs")(x, level)
