"""Noise Conditional Score Networks in JAX: score matching, score networks and Langevin samplers."""

from ncsn_jax.densities import GaussianMixture, score_of
from ncsn_jax.guidance import class_log_likelihood, classifier_free_guidance, guided_score
from ncsn_jax.interpolation import interpolate, interpolate_latents
from ncsn_jax.likelihood import log_likelihood
from ncsn_jax.losses import (
    denoising_score_matching,
    explicit_score_matching,
    implicit_score_matching,
    ncsn_loss,
    sliced_score_matching,
)
from ncsn_jax.models import MLP, NCSN, NCSNpp, NCSNv2, Preconditioned, as_score_fn
from ncsn_jax.noise import geometric_sigmas, karras_sigmas
from ncsn_jax.posterior import Observation, inpaint, posterior_score, sample_posterior
from ncsn_jax.samplers import (
    annealed_langevin_dynamics,
    consistent_annealed_sampling,
    heun,
    langevin_dynamics,
    langevin_step,
    predictor_corrector,
    probability_flow,
)

__all__ = [
    "MLP",
    "NCSN",
    "GaussianMixture",
    "NCSNpp",
    "NCSNv2",
    "Observation",
    "Preconditioned",
    "annealed_langevin_dynamics",
    "as_score_fn",
    "class_log_likelihood",
    "classifier_free_guidance",
    "consistent_annealed_sampling",
    "denoising_score_matching",
    "explicit_score_matching",
    "geometric_sigmas",
    "guided_score",
    "heun",
    "implicit_score_matching",
    "inpaint",
    "interpolate",
    "interpolate_latents",
    "karras_sigmas",
    "langevin_dynamics",
    "langevin_step",
    "log_likelihood",
    "ncsn_loss",
    "posterior_score",
    "predictor_corrector",
    "probability_flow",
    "sample_posterior",
    "score_of",
    "sliced_score_matching",
]
