"""Noise Conditional Score Networks in JAX: score matching, score networks and Langevin samplers."""

from ncsn_jax.langevin import annealed_langevin_dynamics, langevin_dynamics, langevin_step
from ncsn_jax.losses import denoising_score_matching, explicit_score_matching, ncsn_loss
from ncsn_jax.models import NCSN, as_score_fn
from ncsn_jax.noise import geometric_sigmas

__all__ = [
    "NCSN",
    "annealed_langevin_dynamics",
    "as_score_fn",
    "denoising_score_matching",
    "explicit_score_matching",
    "geometric_sigmas",
    "langevin_dynamics",
    "langevin_step",
    "ncsn_loss",
]
