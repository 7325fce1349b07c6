"""Networks of patches: blocks of pixels as channels, on a smaller image."""

from typing import Any

import jax
from flax import linen as nn
from jax import Array
from jaxtyping import Float

from ncsn_jax.models.layers import Images


class Patches(nn.Module):
    """The score of a network that sees each patch of P×P pixels as one pixel with P² times the channels.

    Patches only rearrange the numbers of an image, so the score of the rearranged image is the rearranged
    score. The network has a P²-th of the pixels to convolve.

    Attributes:
      network: a batched score network for images of 1/P the height and width.
      patch_size: P.

    Reference:
      Shi et al. 2016 (arXiv:1609.05158), figure 1, for the rearrangement.
    """

    network: nn.Module
    patch_size: int

    @property
    def sigmas(self) -> tuple[float, ...] | None:
        """The discrete levels that the network embeds; None if it takes any σ."""
        return getattr(self.network, "sigmas", None)

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        sigma: Float[Array, " batch"],
        condition: Any = None,
    ) -> Float[Array, "batch height width channels"]:
        """Compute the scores of a batch.

        Args:
          x: perturbed images, `(batch, height, width, channels)`; P divides height and width.
          sigma: the noise level of each image, `(batch,)`.
          condition: the conditions that the network takes, if any; images in them become patches, too.

        Returns:
          Scores of the shape of x.

        Raises:
          ValueError: if x isn't a batch of images, P doesn't divide them, or the network can't take them.
        """
        size = self.patch_size
        if x.ndim != 4 or x.shape[1] % size or x.shape[2] % size:
            raise ValueError(
                f"patch_size={size}: x must be images, (batch, height, width, channels), of multiples of "
                f"{size} pixels, found the shape {x.shape}"
            )
        given = [] if condition is None else [jax.tree.map(self._patched, condition)]
        return to_pixels(self.network(to_patches(x, size), sigma, *given), size)

    def _patched(self, leaf: Array) -> Array:
        """Return the patches of a condition's images; its other parts are arrays of fewer axes."""
        return to_patches(leaf, self.patch_size) if leaf.ndim == 4 else leaf


def to_patches(x: Images, size: int) -> Images:
    """Return each block of size×size pixels as the channels of one pixel, row by row."""
    batch, height, width, channels = x.shape
    blocks = x.reshape(batch, height // size, size, width // size, size, channels)
    return blocks.swapaxes(2, 3).reshape(batch, height // size, width // size, size * size * channels)


def to_pixels(x: Images, size: int) -> Images:
    """Return the image of patches: the inverse of `to_patches`."""
    batch, height, width, channels = x.shape
    blocks = x.reshape(batch, height, width, size, size, channels // size**2)
    return blocks.swapaxes(2, 3).reshape(batch, height * size, width * size, channels // size**2)
