"""Networks of the variance-preserving processes, as scores of data with added noise."""

import math
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Float

from ncsn_jax.models.layers import sigma_of_batch

Process = Literal["vp", "subvp"]


def sigma_at(time: float, process: Process, beta_min: float = 0.1, beta_max: float = 20.0) -> float:
    """Return σ = b/a at a time of the process, the noise level of `VPScore`."""
    decay = time**2 * (beta_max - beta_min) / 4 + time * beta_min / 2
    return math.sqrt(math.expm1(2 * decay)) if process == "vp" else 2 * math.sinh(decay)


class VPScore(nn.Module):
    """The score s(x, σ) = −f(a·x, 999·t)/σ of a network f that was trained on the VP or the subVP process.

    At its time t, the process has a·x₀ + b·z with z ~ N(0, I), which is a times x₀ + σz with σ = b/a. With
    −log a = t²(β₁ − β₀)/4 + tβ₀/2:

    - VP: b = √(1 − a²), so a = 1/√(1 + σ²);
    - subVP: b = 1 − a², so a = (√(σ² + 4) − σ)/2.

    Networks of a discrete process of 1,000 steps are evaluated at the labels of the continuous one.

    Attributes:
      network: f, a network that takes the label instead of σ, such as `NCSNpp` with `embedding="positional"`,
        `scale_by_sigma=False` and `rescaled=True`.
      process: `vp` or `subvp`.
      beta_min: β₀.
      beta_max: β₁.
      rescaled: whether images already lie in [−1, 1], the range that f was trained on; otherwise x and σ are
        of images in [0, 1].

    Reference:
      Song et al. 2021 (arXiv:2011.13456), equations 29 and 33, and appendix C.
    """

    network: nn.Module
    process: Process = "vp"
    beta_min: float = 0.1
    beta_max: float = 20.0
    rescaled: bool = False

    def __call__(
        self, x: Float[Array, "batch *event"], sigma: Float[Array, " batch"], condition: Any = None
    ) -> Array:
        """Compute the scores of a batch.

        Args:
          x: perturbed images, `(batch, height, width, channels)`.
          sigma: the noise level of each image, `(batch,)`, in the units of x.
          condition: the conditions that the network takes, if any.

        Returns:
          Scores of the shape of x.

        Raises:
          ValueError: if β falls with time, or the network can't take such images.
        """
        sigma = sigma_of_batch(x, sigma)
        if self.beta_min > self.beta_max:
            raise ValueError(f"beta_min={self.beta_min}: accepted: at most beta_max={self.beta_max}")
        scale = 1.0
        if not self.rescaled:
            x, sigma, scale = 2.0 * x - 1.0, 2.0 * sigma, 2.0

        def by_image(values: Array) -> Array:
            return values.reshape(-1, *[1] * (x.ndim - 1))

        # −log a, in forms that keep their digits at small σ.
        decay = 0.5 * jnp.log1p(jnp.square(sigma)) if self.process == "vp" else jnp.arcsinh(sigma / 2.0)
        slope, half = self.beta_max - self.beta_min, self.beta_min / 2.0
        time = 2.0 * decay / (half + jnp.sqrt(half**2 + slope * decay))
        scaled = (by_image(jnp.exp(-decay)) * x).astype(x.dtype)
        given = [] if condition is None else [condition]
        return (-scale * self.network(scaled, 999.0 * time, *given) / by_image(sigma)).astype(x.dtype)
