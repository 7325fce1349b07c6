"""A trained network, and how its samples, its likelihood and its loss are computed."""

import dataclasses
from typing import Any

from flax import linen as nn

from ncsn_jax.runtime.chains import Recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generator:
    """A network to evaluate, and the way to sample and to measure it.

    Attributes:
      model: the network; its variables come from the checkpoints.
      sigmas: the noise levels of the training, descending.
      recipe: the way to draw its samples.
      batch_size: the number of chains at once; None is as many as memory allows.
      power: the exponent of the loss weight λ(σ) = σ^power.
      rtol: the relative tolerance of the likelihood's solver.
      atol: the absolute tolerance of the likelihood's solver.
      seed: the seed of the likelihood and of the loss.
      model_identity: JSON, such as the network's name and fields. If it changes, all is computed anew.
      sampler_identity: JSON, such as the sampler's name and settings, the conditions and the guidance. If it
        changes, or the levels, shape, noise or seed of the recipe, samples are drawn anew.
    """

    model: nn.Module
    sigmas: tuple[float, ...]
    recipe: Recipe
    model_identity: Any
    sampler_identity: Any
    batch_size: int | None = None
    power: float = 2.0
    rtol: float = 1e-5
    atol: float = 1e-5
    seed: int = 0
