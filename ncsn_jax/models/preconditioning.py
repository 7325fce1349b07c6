"""Preconditioning, which gives any network inputs and targets of unit variance at every noise level."""

import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Float

from ncsn_jax.models.layers import sigma_of_batch
from ncsn_jax.models.ncsnv2 import NCSNv2
from ncsn_jax.models.patches import Patches
from ncsn_jax.models.vp import VPScore


class Preconditioned(nn.Module):
    """The score of a preconditioned network F, for any σ > 0.

    With the data's standard deviation σ_d and r = √(σ² + σ_d²),

      s(x, σ) = −x/r² + σ_d/(σr) F(x/r, σ^¼).

    It is the score (D(x; σ) − x)/σ² of the denoiser D with c_skip = σ_d²/r², c_out = σσ_d/r, c_in = 1/r and
    c_noise = ¼ log σ, without the difference, which cancels at small σ. Its training target for F has unit
    variance at every σ if the data have the standard deviation σ_d. F = 0 is the exact score of N(0, σ_d² I).

    F gets the label σ^¼ = exp(c_noise) instead of σ, because networks for any σ take its logarithm.

    Attributes:
      network: F, a batched network that takes any positive label and doesn't divide by it, such as `NCSNpp`
        with `scale_by_sigma=False` and `rescaled=True`.
      data_std: σ_d, the standard deviation of all elements of the data, in the units of x.

    Reference:
      Karras et al. 2022 (arXiv:2206.00364), table 1 and equation 7.
    """

    network: nn.Module
    data_std: float

    def __call__(
        self, x: Float[Array, "batch *event"], sigma: Float[Array, " batch"], condition: Any = None
    ) -> Float[Array, "batch *event"]:
        """Compute the scores of a batch.

        Args:
          x: perturbed examples, `(batch, *event)`.
          sigma: the noise level of each example, `(batch,)`, in the units of x.
          condition: the conditions that the network takes, if any.

        Returns:
          Scores of the shape of x.

        Raises:
          ValueError: if `data_std` isn't positive, the network divides by its label or embeds fixed levels,
            or it can't take such examples.
        """
        self._check()
        sigma = sigma_of_batch(x, sigma)
        label = jnp.power(sigma, 0.25)
        sigma = sigma.reshape(-1, *[1] * (x.ndim - 1))
        root = jnp.hypot(sigma, self.data_std)
        given = [] if condition is None else [condition]
        output = self.network((x / root).astype(x.dtype), label, *given)
        return (self.data_std / (sigma * root) * output - x / jnp.square(root)).astype(x.dtype)

    def _check(self) -> None:
        network = self.network
        while isinstance(network, Patches):
            network = network.network
        kind = type(network).__name__
        if not 0 < self.data_std < math.inf:
            raise ValueError(f"data_std={self.data_std}: accepted: a positive number")
        if getattr(network, "scale_by_sigma", False):
            raise ValueError(
                f"network={kind}: it would be divided by the noise level twice; use scale_by_sigma=False"
            )
        of_scores = isinstance(network, NCSNv2 | VPScore | Preconditioned)
        if of_scores or getattr(network, "sigmas", None) is not None:
            raise ValueError(
                f"network={kind}: it divides by the noise level, or embeds fixed levels; accepted: a network "
                "for any label, such as NCSNpp with scale_by_sigma=False"
            )
