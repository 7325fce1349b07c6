"""NCSN++ and DDPM++, the score networks of 2021: U-Nets conditioned on any noise level."""

import functools
import itertools
import typing
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from ncsn_jax.models.conditions import ConditionEmbedding, ConditionKind, beside, hashable, parts_of
from ncsn_jax.models.layers import Activation, Images, sigma_of_batch, swish
from ncsn_jax.models.ncsn import nearest_level
from ncsn_jax.models.resampling import Kernel, down, down_conv, up, up_conv
from ncsn_jax.models.unet import (
    Attention,
    Combine,
    FourierFeatures,
    Resample,
    ResidualBlock,
    Time,
    dense,
    group_norm,
    merged,
    positional_features,
    unet_conv,
)


class NCSNpp(nn.Module):
    """The score network s(x, σ) of Song et al. 2021 for images, identical to the release's `ncsnpp`.

    With `fourier` embeddings it takes any σ > 0. With `positional` ones it embeds a fixed list of noise
    levels, and replaces σ by the nearest of `sigmas` in log σ; without `sigmas`, its second argument is the
    label itself, a real number, as in networks of the VP process.

    Level i has images of 1/2ⁱ the height and width. The plain DDPM network (`ddpm` in the release) is
    `block="ddpm", fir=False, skip_rescale=False, embedding="positional", num_groups=32`.

    Attributes:
      num_filters: the number of channels of the first convolution (nf), a multiple of 4.
      multipliers: the number of channels of each level, in multiples of `num_filters` (ch_mult).
      num_res_blocks: the number of residual blocks of a level on the way down; one more on the way up.
      attention_resolutions: the sizes image_size/2ⁱ at which a level has attention.
      image_size: the size of images that `attention_resolutions` refer to, whatever the size of x.
      middle_attention: whether the middle of the network has attention, as in the official networks; its
        memory grows with the square of the number of pixels there.
      block: the residual blocks, `biggan`, which resample too, or `ddpm` (resblock_type).
      fir: whether images are resampled by a filter; otherwise, pixels are repeated and averaged.
      fir_kernel: the filter of an axis, or of both.
      resample_with_conv: whether `ddpm` levels are resampled with a convolution (resamp_with_conv).
      skip_rescale: whether sums of two branches are divided by √2.
      progressive: the pyramid of outputs: `none`, `output_skip` or `residual`.
      progressive_input: the pyramid of inputs: `none`, `input_skip` or `residual`.
      combine: how `input_skip` joins the image and the features, `sum` or `cat` (progressive_combine).
      embedding: the embedding of the noise level, `fourier` or `positional` (embedding_type).
      fourier_scale: the standard deviation of the Fourier frequencies, which are never trained.
      scale_by_sigma: whether the output is divided by σ.
      sigmas: the noise levels σ₁ > … > σ_L of a positional embedding, a tuple of floats.
      init_scale: the scale of the initial weights that end a branch; 0 stands for 1e-10.
      num_groups: the number of groups of the normalisations; None for a fourth of the channels, at most 32.
      dropout: the rate of dropout in residual blocks, active where `apply` has a key named `dropout`.
      act: the activation; a plain function if the network is to be pickled.
      rescaled: whether images already lie in [−1, 1] (data.centered); otherwise [0, 1] is mapped there first.
      conditions: the kind of condition that the network takes: classes and vectors are added to the embedding
        of the noise level, images are further channels of x; None for none.
      dtype: the type of the features, such as bfloat16; None for the type of x. It doesn't affect parameters,
        the embedding, normalisation statistics or scores.

    Reference:
      Song et al. 2021 (arXiv:2011.13456), section 4.1 and appendix H.
    """

    num_filters: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 4
    attention_resolutions: tuple[int, ...] = (16,)
    image_size: int = 32
    middle_attention: bool = True
    block: Literal["biggan", "ddpm"] = "biggan"
    fir: bool = True
    fir_kernel: Kernel = (1.0, 3.0, 3.0, 1.0)
    resample_with_conv: bool = True
    skip_rescale: bool = True
    progressive: Literal["none", "output_skip", "residual"] = "none"
    progressive_input: Literal["none", "input_skip", "residual"] = "residual"
    combine: Literal["sum", "cat"] = "sum"
    embedding: Literal["fourier", "positional"] = "fourier"
    fourier_scale: float = 16.0
    scale_by_sigma: bool = True
    sigmas: tuple[float, ...] | None = None
    init_scale: float = 0.0
    num_groups: int | None = None
    dropout: float = 0.0
    act: Activation = swish
    rescaled: bool = False
    dtype: DTypeLike | None = None
    conditions: ConditionKind | None = None

    def __post_init__(self) -> None:
        self.conditions = hashable(self.conditions)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        sigma: Float[Array, " batch"],
        condition: Any = None,
    ) -> Float[Array, "batch height width channels"]:
        """Compute the scores of a batch of images.

        Args:
          x: perturbed images, `(batch, height, width, channels)`; height and width are halved once less than
            there are multipliers.
          sigma: the noise level of each image, `(batch,)`; its label if there are no `sigmas` to embed.
          condition: the condition of each image, as `conditions` says; None is the null condition.

        Returns:
          Scores of the shape of x.

        Raises:
          ValueError: if x isn't a batch of images, a height or width can't be halved so often, sigma isn't
            one number for each image, the fields contradict each other, or the condition doesn't fit.
        """
        sigma = sigma_of_batch(x, sigma)
        self._check(x)
        given = parts_of(self.conditions, condition, x)
        numbers = itertools.count()

        def named(kind: str) -> str:  # the release has one numbered list of modules
            return f"{kind}_{next(numbers)}"

        time, scale = self._embedded(sigma, named)
        image = (x if self.rescaled else 2.0 * x - 1.0).astype(x.dtype if self.dtype is None else self.dtype)
        if given:
            time = time + ConditionEmbedding(time.shape[1], name="conditions")(given)
            image = beside(image, given)
        h = self._unet(image, time, named, x.shape[-1]).astype(x.dtype)
        return h / scale[:, None, None, None] if self.scale_by_sigma else h

    def _check(self, x: Array) -> None:
        if x.ndim != 4:
            raise ValueError(
                f"the network takes images, (batch, height, width, channels), found an x of shape {x.shape}"
            )
        for name in ("block", "progressive", "progressive_input", "combine", "embedding"):
            words = typing.get_args(type(self).__annotations__[name])
            if getattr(self, name) not in words:
                raise ValueError(f"{name}={getattr(self, name)!r}: accepted: {', '.join(map(repr, words))}")
        if self.num_filters < 4 or not self.multipliers:
            raise ValueError(
                f"num_filters={self.num_filters}, multipliers={self.multipliers}: accepted: at least 4 "
                "filters, and one multiplier"
            )
        multiple = 2 ** (len(self.multipliers) - 1)
        if x.shape[1] % multiple or x.shape[2] % multiple:
            raise ValueError(
                f"the network halves images {len(self.multipliers) - 1} times: height and width must be "
                f"multiples of {multiple}, found {x.shape[1]}×{x.shape[2]} pixels"
            )
        if self.embedding == "fourier" and self.sigmas is not None:
            raise ValueError(
                "sigmas: Fourier embeddings take any σ; use embedding='positional', or no sigmas"
            )
        if self.embedding == "positional" and self.scale_by_sigma and self.sigmas is None:
            raise ValueError(
                "scale_by_sigma=True: a positional embedding needs sigmas to divide by, found None"
            )

    def _embedded(self, sigma: Float[Array, " batch"], named) -> tuple[Time, Float[Array, " batch"]]:
        """Return the embedding of each noise level, and the number that the output is divided by."""
        if self.embedding == "fourier":
            features = FourierFeatures(self.num_filters, self.fourier_scale, name=named("fourier"))(sigma)
        else:
            label = sigma
            if self.sigmas is not None:
                level = nearest_level(sigma, self.sigmas)
                label, sigma = level.astype(sigma.dtype), jnp.asarray(self.sigmas, sigma.dtype)[level]
            features = positional_features(label, self.num_filters)
        h = dense(features, 4 * self.num_filters, name=named("dense"))
        return dense(self.act(h), 4 * self.num_filters, name=named("dense")), sigma

    def _unet(self, image: Images, time: Time, named, channels: int) -> Images:
        """Return the output before the division by σ, in the type of the image."""
        kernel = self.fir_kernel if self.fir else None
        norm = functools.partial(group_norm, num_groups=self.num_groups)
        ends = {"init_scale": self.init_scale, "skip_rescale": self.skip_rescale}
        widths = [self.num_filters * multiplier for multiplier in self.multipliers]
        has_attention = [self.image_size / 2**i in self.attention_resolutions for i in range(len(widths))]
        coarsest = len(widths) - 1

        def block(h: Images, width: int, resample=None) -> Images:
            options = {"dropout": self.dropout, "resample": resample, "name": named("block")}
            return ResidualBlock(width, self.block, norm, self.act, **ends, **options)(h, time)

        def attention(h: Images) -> Images:
            return Attention(norm, **ends, name=named("attention"))(h)

        def with_conv(convolve, h: Images, width: int) -> Images:
            return Resample(convolve, width, kernel, name=named("resample"))(h)

        def resampled(h: Images, plain, convolve) -> Images:
            if self.block == "biggan":
                return block(h, h.shape[-1], lambda h: plain(h, kernel))
            if self.resample_with_conv:
                return with_conv(convolve, h, h.shape[-1])
            named("resample")  # it has a number, but no parameters
            return plain(h, kernel)

        def output(h: Images, channels: int, scale: float) -> Images:
            h = self.act(norm(h, name=named("norm")))
            return unet_conv(h, channels, scale=scale, name=named("conv"))

        pyramid = image
        h = unet_conv(image, self.num_filters, name=named("conv"))
        skipped = [h]
        for level, width in enumerate(widths):
            for _ in range(self.num_res_blocks):
                h = block(h, width)
                h = attention(h) if has_attention[level] else h
                skipped.append(h)
            if level < coarsest:
                h = resampled(h, down, down_conv)
                if self.progressive_input == "input_skip":
                    pyramid = down(pyramid, kernel)
                    h = Combine(self.combine, name=named("combine"))(pyramid, h)
                elif self.progressive_input == "residual":
                    pyramid = with_conv(down_conv, pyramid, h.shape[-1])
                    h = pyramid = merged(pyramid, h, skip_rescale=self.skip_rescale)
                skipped.append(h)

        h = block(h, h.shape[-1])
        h = attention(h) if self.middle_attention else h
        h = block(h, h.shape[-1])

        pyramid = None
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(self.num_res_blocks + 1):
                h = block(jnp.concatenate([h, skipped.pop()], axis=-1), width)
            h = attention(h) if has_attention[level] else h
            if self.progressive == "output_skip":
                out = output(h, channels, self.init_scale)
                pyramid = out if pyramid is None else up(pyramid, kernel) + out
            elif self.progressive == "residual":
                if pyramid is None:
                    pyramid = output(h, h.shape[-1], 1.0)
                else:
                    pyramid = with_conv(up_conv, pyramid, h.shape[-1])
                    h = pyramid = merged(pyramid, h, skip_rescale=self.skip_rescale)
            h = resampled(h, up, up_conv) if level else h
        if self.progressive == "output_skip" and pyramid is not None:
            return pyramid
        return output(h, channels, self.init_scale)
