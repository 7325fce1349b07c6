"""Many chains at once: each is the sampler's own, whatever its batch and device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ncsn_jax import annealed_langevin_dynamics, as_score_fn
from ncsn_jax.app.methods import recipe_of, sampler_of
from ncsn_jax.data.datasets import TRANSFORMS
from ncsn_jax.runtime import chains
from ncsn_jax.runtime.chains import batches
from ncsn_jax.runtime.streams import stream
from ncsn_jax.samplers import run
from tests import samples
from tests.samples import INFO, METHODS, OPTIONS, SETTINGS, SHAPE, SIGMAS, draw


@pytest.fixture(scope="module", name="score_fn")
def _score_fn():
    return samples.score_fn()


@pytest.mark.parametrize("method", METHODS)
def test_the_states_of_a_chain_are_the_saved_states_of_run(score_fn, method):
    sampler = sampler_of(SETTINGS.model_copy(update={"method": method} | OPTIONS[method]), SIGMAS)
    key, x = jax.random.key(5), jax.random.normal(jax.random.key(6), SHAPE)
    first, *states = chains.chains(sampler, key[None, None], score_fn, x[None, None])
    last, saved = jax.jit(lambda x: run(key, sampler, score_fn, x, save=lambda x: x))(x)
    np.testing.assert_array_equal(first[0, 0], x)
    np.testing.assert_allclose(np.stack(states)[:, 0, 0], saved, atol=1e-4)
    np.testing.assert_array_equal(saved[-1], last)


@pytest.mark.parametrize("method", METHODS)
def test_a_sample_depends_on_its_key_and_not_on_batch_or_devices(score_fn, method, local_devices):
    samples = draw(score_fn, method=method, s_churn=1.0)
    assert len({image.tobytes() for image in samples}) == 64
    for batch_size, devices, first in [(1, 1, 11), (7, 4, 9)]:
        local_devices(devices)
        others = draw(score_fn, batch_size, first, method=method, s_churn=1.0)
        assert len(others) == -(-batch_size // devices) * devices
        np.testing.assert_allclose(others, samples[first : first + len(others)], atol=1e-4)


def test_samples_differ_by_seed(score_fn):
    samples, other = draw(score_fn), draw(score_fn, seed=1)
    assert np.abs(other - samples).max((1, 2, 3)).min() > 0.1


@pytest.mark.parametrize("name", ["rescale", "logit"])
def test_samples_start_transformed_for_the_network_and_are_transformed_back(score_fn, name):
    transform = TRANSFORMS[name]
    (numbers,) = batches(4, 4)
    recipe = recipe_of(SETTINGS, SIGMAS, INFO)._replace(transform=transform)
    first, *_, last = chains.draw(score_fn, recipe, numbers)
    start_key, chain_key = jax.random.split(jax.random.fold_in(stream(0, "sampling"), 1))
    uniform = jax.random.uniform(start_key, SHAPE)
    np.testing.assert_allclose(np.asarray(first)[1, 0], uniform, atol=1e-5)
    x = annealed_langevin_dynamics(
        chain_key,
        score_fn,
        transform.forward(uniform),
        jnp.asarray(SIGMAS),
        step_size=1e-3,
        steps_per_scale=3,
    )
    np.testing.assert_allclose(np.asarray(last)[1, 0], transform.inverse(x), atol=1e-4)


def test_sampling_another_checkpoint_or_number_of_samples_compiles_nothing():
    traces = []

    class Score(nn.Module):
        @nn.compact
        def __call__(self, x, sigma):
            traces.append(sigma)
            return -self.param("slope", nn.initializers.ones, ()) * x

    variables = Score().init(jax.random.key(0), jnp.zeros((1, *SHAPE)), jnp.ones(1))
    traces.clear()
    (numbers,) = batches(64, 64)
    list(chains.draw(as_score_fn(Score(), variables), recipe_of(SETTINGS, SIGMAS, INFO), numbers))
    once = len(traces)
    doubled = jax.tree.map(lambda v: 2 * v, variables)
    more = SETTINGS.model_copy(update={"num_samples": 11, "seed": 2})
    list(chains.draw(as_score_fn(Score(), doubled), recipe_of(more, SIGMAS, INFO), numbers))
    assert once > 0
    assert len(traces) == once
