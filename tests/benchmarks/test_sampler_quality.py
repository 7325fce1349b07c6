"""The benchmark of the samplers: its counts of score evaluations, and its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.sampler_quality import BUDGETS, METHODS, measure, sampler
from configs.digits import get_config
from ncsn_jax import as_score_fn, data, probability_flow, training
from ncsn_jax.app import config as run_config
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.samplers import run

CONFIG = run_config.parse(get_config("v2").to_dict())


@pytest.mark.parametrize("method", [method for method in METHODS if "from data" not in method])
def test_a_sampler_makes_exactly_the_score_evaluations_it_reports(method):
    calls = []

    def score_fn(x, sigma):
        jax.debug.callback(lambda: calls.append(1))
        return -x / (1.0 + jnp.square(sigma))

    chosen, evaluations = sampler(method, 50, CONFIG)

    draw = jax.jit(lambda key, x: run(key, chosen, score_fn, x))
    draw(jax.random.key(0), jnp.ones(2)).block_until_ready()
    jax.effects_barrier()
    assert len(calls) == evaluations


@pytest.mark.parametrize("budget", BUDGETS)
def test_samplers_stay_within_their_evaluation_budget(budget):
    for method in METHODS:
        assert 0.9 * budget < sampler(method, budget, CONFIG)[1] <= budget


def test_measuring_sampler_quality_reports_a_missing_run(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        measure(tmp_path, METHODS, BUDGETS, 10, 10)


@pytest.mark.slow
def test_any_sigma_config_samples_digits_in_99_evaluations_and_inverts_test_images(tmp_path, data_dir):
    """As docs/samplers.md says: with churn, Heun's 99 evaluations match Langevin's 993, and the test images
    are recovered within 0.01 in every pixel."""
    settings = get_config("v2").to_dict()
    settings["data"]["data_dir"] = data_dir
    config = run_config.parse(settings)
    training.train_and_evaluate(config, tmp_path)
    (langevin,) = measure(tmp_path, ["annealed"], [1000], 1000, 250)
    (heun,) = measure(tmp_path, ["heun with churn"], [100], 1000, 250)
    assert (heun.evaluations, langevin.evaluations) == (99, 993)
    # A smaller distance than between exact draws would mean copies of the training images.
    assert 0.03 < heun.distance <= langevin.distance

    score_fn = as_score_fn(*training.restore(tmp_path))
    x = jnp.asarray((data.load(config.data).test[np.arange(297)] + 0.5) / 17, jnp.float32)

    @jax.jit
    @jax.vmap
    def there_and_back(x):
        latent = probability_flow(score_fn, x, 0.01, 1.0)
        return latent, probability_flow(score_fn, latent, 1.0, 0.01)

    latents, back = there_and_back(x)
    np.testing.assert_allclose(back, x, atol=1e-2)
    assert 0.9 < jnp.std(latents) < 1.2
