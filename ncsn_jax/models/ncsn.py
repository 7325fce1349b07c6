"""NCSN, the score network of 2019: a dilated RefineNet conditioned on a list of noise levels."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from ncsn_jax.models.conditions import Classes, ConditionKind, class_rows, parts_of
from ncsn_jax.models.layers import (
    Activation,
    ConditionalInstanceNormPlus,
    LevelAndClass,
    average_pool5,
    elu,
    sigma_of_batch,
)
from ncsn_jax.models.refinenet import refinenet


class NCSN(nn.Module):
    """The noise conditional score network s(x, σ) for images, identical to the official one.

    It embeds a fixed list of noise levels: each σ is replaced by the nearest of `sigmas` in log σ, so the
    score is piecewise constant in σ.

    The official classes are `CondRefineNetDilated` (`depth=4`; `NCSN` in the repository of NCSNv2),
    `NCSNdeeper` (`depth=5`), and `CondRefineNetDeeperDilated` (`depth=5, norm=ConditionalInstanceNorm`).

    Attributes:
      sigmas: the noise levels σ₁ > … > σ_L, a tuple of floats.
      num_filters: the number of channels of the first stage (ngf), at least 2; deeper stages have more.
      depth: the number of stages, 4, 5 or 6.
      norm: the normalisation, created by `norm(num_scales=L, name=...)`, and with `num_classes=K` if
        there are `conditions`.
      act: the activation; a plain function if the network is to be pickled.
      rescaled: whether images already lie in [−1, 1]; otherwise [0, 1] is mapped there first.
      conditions: the classes that the network takes, whose embeddings, zero at first, are added to the
        coefficients of every normalisation; None for none.
      dtype: the type of the features, such as bfloat16; None for the type of x. It doesn't affect parameters,
        normalisation statistics or scores.

    Reference:
      Song & Ermon 2019 (arXiv:1907.05600), appendix A.
    """

    sigmas: tuple[float, ...]
    num_filters: int = 64
    depth: int = 4
    norm: Callable[..., nn.Module] = ConditionalInstanceNormPlus
    act: Activation = elu
    rescaled: bool = False
    dtype: DTypeLike | None = None
    conditions: ConditionKind | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        sigma: Float[Array, " batch"],
        condition: Any = None,
    ) -> Float[Array, "batch height width channels"]:
        """Compute the scores of a batch of images.

        Args:
          x: perturbed images, `(batch, height, width, channels)`; height and width are halved `depth − 3`
            times.
          sigma: the noise level of each image, `(batch,)`.
          condition: the class of each image, `(batch,)`, if there are `conditions`; None is the null class.

        Returns:
          Scores of the shape of x.

        Raises:
          ValueError: if x isn't a batch of images, a height or width can't be halved so often, sigma isn't
            one number for each image, the depth is unknown, or the condition doesn't fit.
        """
        sigma = sigma_of_batch(x, sigma)
        if not isinstance(self.conditions, Classes | None):
            raise ValueError(f"conditions={self.conditions}: accepted: Classes, or None")
        norm = functools.partial(self.norm, num_scales=len(self.sigmas))
        level: Any = nearest_level(sigma, self.sigmas)
        given = parts_of(self.conditions, condition, x)
        if self.conditions is not None:
            norm = functools.partial(norm, num_classes=self.conditions.num_classes)
            level = LevelAndClass(level, class_rows(given[0]))
        return refinenet(
            x,
            level,
            depth=self.depth,
            num_filters=self.num_filters,
            norm=norm,
            refine_norm=norm,
            pool=average_pool5,
            act=self.act,
            rescaled=self.rescaled,
            dtype=self.dtype,
        )


def nearest_level(sigma: Float[Array, " batch"], sigmas: tuple[float, ...]) -> Int[Array, " batch"]:
    """The index of the noise level nearest to each σ in log σ."""
    log_sigmas = jnp.log(jnp.asarray(sigmas, sigma.dtype))
    distance = jnp.abs(jnp.log(sigma)[:, None] - log_sigmas[None, :])
    return jnp.argmin(distance, axis=1)
