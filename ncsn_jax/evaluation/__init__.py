"""Evaluation of networks and images: settings and features; `ncsn_jax.evaluation.loop` evaluates a run."""

# ruff: noqa: E402
from ncsn_jax.extras import require_app

require_app(__name__)

from ncsn_jax.evaluation.features import PIXELS, Extracted, Features
from ncsn_jax.evaluation.generator import Generator
from ncsn_jax.evaluation.settings import Evaluation
from ncsn_jax.likelihood import bits_per_dim, hutchinson, log_jacobian, log_likelihood

__all__ = [
    "PIXELS",
    "Evaluation",
    "Extracted",
    "Features",
    "Generator",
    "bits_per_dim",
    "hutchinson",
    "log_jacobian",
    "log_likelihood",
]
