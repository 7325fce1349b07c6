"""NCSN, the score network of 2019: a dilated RefineNet with conditional InstanceNorm++."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Float

from ncsn_jax.models.layers import (
    Activation,
    ConditionalInstanceNormPlus,
    Images,
    Levels,
    RefineBlock,
    ResidualBlock,
    conv,
)


class Stage(NamedTuple):
    """Two residual blocks; `width` is in multiples of the network's `num_filters`."""

    name: str
    width: int
    down: bool
    dilation: int


class Refine(NamedTuple):
    """A refinement block: the outputs it fuses, finest first, and its width."""

    name: str
    inputs: tuple[str, ...]
    width: int


STAGES = (
    Stage("res1", 1, down=False, dilation=1),
    Stage("res2", 2, down=True, dilation=1),
    Stage("res3", 2, down=True, dilation=2),
    Stage("res4", 2, down=True, dilation=4),
)
CHAIN = (
    Refine("refine1", ("res4",), 2),
    Refine("refine2", ("res3", "refine1"), 2),
    Refine("refine3", ("res2", "refine2"), 1),
    Refine("refine4", ("res1", "refine3"), 1),
)


class NCSN(nn.Module):
    """The noise conditional score network s(x, σ) for images, exactly the official `CondRefineNetDilated`.

    It embeds a fixed list of noise levels: a σ is looked up as the nearest of `sigmas` in log σ, so the
    score is piecewise constant in σ.

    Attributes:
      sigmas: the noise levels σ₁ > … > σ_L, a tuple of floats.
      num_filters: the channels of the first stage (ngf); the deeper ones have twice as many. At least 2.
      act: the activation.
      rescaled: whether images already lie in [−1, 1]; otherwise [0, 1] is mapped there first.

    Reference:
      Song & Ermon 2019 (arXiv:1907.05600), appendix A.
    """

    sigmas: tuple[float, ...]
    num_filters: int = 64
    act: Activation = nn.elu
    rescaled: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], sigma: Float[Array, " batch"]
    ) -> Float[Array, "batch height width channels"]:
        """The scores of a batch of images.

        Args:
          x: perturbed images, `(batch, height, width, channels)`, height and width even.
          sigma: the noise level of each image, `(batch,)`.

        Returns:
          Scores of the shape of x.

        Raises:
          ValueError: if x isn't a batch of images, or their height or width is odd.
        """
        if x.ndim != 4:
            raise ValueError(
                f"NCSN takes images, (batch, height, width, channels), found an x of shape {x.shape}"
            )
        norm = functools.partial(ConditionalInstanceNormPlus, num_levels=len(self.sigmas))
        level = nearest_level(sigma, self.sigmas)
        h = x if self.rescaled else 2.0 * x - 1.0
        h = conv(h, self.num_filters, name="begin_conv")
        outputs: dict[str, Images] = {}
        for name, width, down, dilation in STAGES:
            for i, down_here in enumerate((down, False)):
                h = ResidualBlock(
                    width * self.num_filters,
                    norm,
                    self.act,
                    down_here,
                    dilation,
                    name=f"{name}_{i}",
                )(h, level)
            outputs[name] = h
        for refine in CHAIN:
            h = RefineBlock(
                refine.width * self.num_filters,
                norm,
                self.act,
                num_output_blocks=3 if refine is CHAIN[-1] else 1,
                name=refine.name,
            )([outputs[name] for name in refine.inputs], level)
            outputs[refine.name] = h
        h = self.act(norm(name="normalizer")(h, level))
        return conv(h, x.shape[-1], name="end_conv")


def nearest_level(sigma: Float[Array, " batch"], sigmas: tuple[float, ...]) -> Levels:
    """The index of the noise level nearest to each σ in log σ."""
    log_sigmas = jnp.log(jnp.asarray(sigmas, sigma.dtype))
    distance = jnp.abs(jnp.log(sigma)[:, None] - log_sigmas[None, :])
    return jnp.argmin(distance, axis=1)
