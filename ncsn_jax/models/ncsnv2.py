"""NCSNv2, the score network of 2020: an unconditional RefineNet whose output is divided by σ."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from ncsn_jax.models.conditions import parts_of
from ncsn_jax.models.layers import Activation, InstanceNormPlus, elu, max_pool5, no_norm, sigma_of_batch
from ncsn_jax.models.refinenet import refinenet


class NCSNv2(nn.Module):
    """The score network s(x, σ) = f(x)/σ for images and any σ > 0, identical to the official one.

    f isn't given σ: it infers the noise from the image. The official classes are `NCSNv2` (`depth=4`),
    `NCSNv2Deeper` (5) and `NCSNv2Deepest` (6).

    Attributes:
      num_filters: the number of channels of the first stage (ngf), at least 2; deeper stages have more.
      depth: the number of stages, 4, 5 or 6.
      norm: the normalisation in the stages, created by `norm(name=...)`; the refine chain isn't normalised.
      act: the activation; a plain function if the network is to be pickled.
      rescaled: whether images already lie in [−1, 1]; otherwise [0, 1] is mapped there first.
      dtype: the type of the features, such as bfloat16; None for the type of x. It doesn't affect parameters,
        normalisation statistics or scores.

    Reference:
      Song & Ermon 2020 (arXiv:2006.09011), appendix A.
    """

    num_filters: int = 128
    depth: int = 4
    norm: Callable[..., nn.Module] = InstanceNormPlus
    act: Activation = elu
    rescaled: bool = False
    dtype: DTypeLike | None = None

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
          condition: None; this network takes no condition.

        Returns:
          Scores of the shape of x.

        Raises:
          ValueError: if x isn't a batch of images, a height or width can't be halved so often, sigma isn't
            one number for each image, there is a condition, or the depth is unknown.
        """
        parts_of(None, condition, x)
        sigma = sigma_of_batch(x, sigma)
        f = refinenet(
            x,
            None,
            depth=self.depth,
            num_filters=self.num_filters,
            norm=self.norm,
            refine_norm=no_norm,
            pool=max_pool5,
            act=self.act,
            rescaled=self.rescaled,
            dtype=self.dtype,
        )
        return f / sigma[:, None, None, None]
