"""A noise-conditional classifier, log p(c | x, σ) of perturbed images."""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Float

from ncsn_jax.models.layers import Activation, conv, pixel_mean, sigma_of_batch, swish


class NoiseConditionalClassifier(nn.Module):
    """Logits of the class of a perturbed image x = x₀ + σz, for any σ > 0.

    Three convolutions, of which two halve the image, see x/√(1 + σ²); between them, each channel is scaled
    and shifted by a linear map of features of log σ. `ncsn_jax.training.classification_objective` trains it,
    and `ncsn_jax.class_log_likelihood` makes the likelihood of its class for `guided_score`.

    Attributes:
      num_classes: K, the number of classes.
      num_filters: the number of channels of the first convolution.
      act: the activation, a smooth one, because guidance takes the gradient.

    Reference:
      Song et al. 2021 (arXiv:2011.13456), section 5 and appendix I.
    """

    num_classes: int
    num_filters: int = 32
    act: Activation = swish

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], sigma: Float[Array, " batch"]
    ) -> Float[Array, "batch K"]:
        """Compute the logits of a batch of images.

        Args:
          x: perturbed images, `(batch, height, width, channels)`, of numbers of order one if σ = 0.
          sigma: the noise level of each image, `(batch,)`.

        Returns:
          The logits, `(batch, num_classes)`.

        Raises:
          ValueError: if x isn't a batch of images, or sigma isn't one number for each of them.
        """
        if x.ndim != 4:
            raise ValueError(
                f"the classifier takes images, (batch, height, width, channels), found the shape {x.shape}"
            )
        sigma = sigma_of_batch(x, sigma)
        label = jnp.log(sigma)[:, None] * jnp.array([[1.0, 0.5, 0.25]])
        level = self.act(
            nn.Dense(self.num_filters)(jnp.concatenate([jnp.sin(label), jnp.cos(label)], axis=1))
        )
        h = x / jnp.sqrt(1.0 + jnp.square(sigma))[:, None, None, None]
        for stage in range(3):
            width = self.num_filters * 2**stage
            h = conv(h, width, name=f"conv_{stage}", strides=1 if stage == 0 else 2)
            scale, shift = jnp.split(nn.Dense(2 * width)(level)[:, None, None], 2, axis=-1)
            h = self.act(nn.GroupNorm(num_groups=None, group_size=4)(h) * (1.0 + scale) + shift)
        features = jnp.concatenate([pixel_mean(h).reshape(len(h), -1), h.reshape(len(h), -1)], axis=1)
        return nn.Dense(self.num_classes)(features)
