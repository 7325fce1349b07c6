"""A network and settings that tests of sampling share."""

import jax
import jax.numpy as jnp

from ncsn_jax import as_score_fn
from ncsn_jax.app.config import Sampling
from ncsn_jax.app.methods import recipe_of
from ncsn_jax.data import DatasetInfo
from ncsn_jax.runtime import chains
from tests.tiny import SmoothScore

SHAPE = (8, 8, 1)
INFO = DatasetInfo(SHAPE, num_values=17)
SIGMAS = (1.0, 0.5, 0.2)
SETTINGS = Sampling(batch_size=64, num_samples=10, step_size=1e-3, steps_per_scale=3, rtol=1e-5, atol=1e-5)
METHODS = ["annealed", "consistent", "pc", "ode", "heun"]
OPTIONS = {
    "annealed": dict(step_size=2e-3, steps_per_scale=4, temperature=0.5, denoise=True),
    "consistent": dict(num_levels=4, eta=0.7, temperature=0.5, denoise=True),
    "pc": dict(
        num_levels=4, predictor="euler_maruyama", corrector_steps=2, snr=0.1, temperature=0.5, denoise=True
    ),
    "ode": dict(num_levels=4, denoise=True, rtol=1e-6, atol=1e-6),
    "heun": dict(num_levels=5, rho=3.0, s_churn=1.0, s_min=0.3, s_max=0.9, s_noise=1.1),
}
"""Settings that each method reads, other than the defaults."""


def score_fn():
    """The score of a smooth network."""
    variables = SmoothScore().init(jax.random.key(0), jnp.zeros((1, *SHAPE)), jnp.ones(1))
    return as_score_fn(SmoothScore(), variables)


def draw(score_fn, batch_size=64, first=0, **options):
    """The last states of a batch."""
    (numbers,) = chains.batches(batch_size, batch_size)
    recipe = recipe_of(SETTINGS.model_copy(update=options), SIGMAS, INFO)
    *_, x = chains.draw(score_fn, recipe, first + numbers)
    return chains.rows(x)
