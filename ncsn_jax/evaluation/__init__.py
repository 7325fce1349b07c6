"""Metrics of samples, likelihood, the evaluation loop over a run's checkpoints, and its report."""

from ncsn_jax.evaluation.features import PIXELS, Extracted, Features
from ncsn_jax.evaluation.loop import evaluate
from ncsn_jax.evaluation.real_features import about_real
from ncsn_jax.evaluation.report import write_report
from ncsn_jax.evaluation.results import Result, Subject, table
from ncsn_jax.likelihood import bits_per_dim, hutchinson, log_jacobian, log_likelihood

__all__ = [
    "PIXELS",
    "Extracted",
    "Features",
    "Result",
    "Subject",
    "about_real",
    "bits_per_dim",
    "evaluate",
    "hutchinson",
    "log_jacobian",
    "log_likelihood",
    "table",
    "write_report",
]
