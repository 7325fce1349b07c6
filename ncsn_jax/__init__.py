"""Noise Conditional Score Networks in JAX: score matching, score networks and Langevin samplers."""

from ncsn_jax.densities import GaussianMixture, score_of
from ncsn_jax.langevin import annealed_langevin_dynamics, langevin_dynamics, langevin_step
from ncsn_jax.losses import (
    denoising_score_matching,
    explicit_score_matching,
    implicit_score_matching,
    ncsn_loss,
    sliced_score_matching,
)
from ncsn_jax.models import MLP, NCSN, NCSNv2, as_score_fn
from ncsn_jax.noise import geometric_sigmas
from ncsn_jax.restoration import inpaint, interpolate

__all__ = [
    "MLP",
    "NCSN",
    "GaussianMixture",
    "NCSNv2",
    "annealed_langevin_dynamics",
    "as_score_fn",
    "denoising_score_matching",
    "explicit_score_matching",
    "geometric_sigmas",
    "implicit_score_matching",
    "inpaint",
    "interpolate",
    "langevin_dynamics",
    "langevin_step",
    "ncsn_loss",
    "score_of",
    "sliced_score_matching",
]
