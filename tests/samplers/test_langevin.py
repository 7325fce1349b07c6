"""Langevin samplers with an exact score."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import (
    annealed_langevin_dynamics,
    geometric_sigmas,
    langevin_dynamics,
    langevin_step,
)
from ncsn_jax.densities import two_gaussians

MIXTURE = two_gaussians()
NUM_CHAINS = 4096


def upper_mode_share(x):
    return float(np.mean(np.asarray(x).sum(axis=1) > 0))


@pytest.fixture(scope="module")
def starts():
    return jax.random.uniform(jax.random.key(0), (NUM_CHAINS, 2), minval=-8.0, maxval=8.0)


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(1), NUM_CHAINS)


def test_annealed_langevin_recovers_the_weights_of_separated_modes(keys, starts):
    sigmas = geometric_sigmas(20.0, 1.0, 10)

    @jax.jit
    @jax.vmap
    def sample(key, x):
        return annealed_langevin_dynamics(key, MIXTURE.score, x, sigmas, step_size=0.1, steps_per_scale=100)

    assert abs(upper_mode_share(sample(keys, starts)) - 0.8) < 0.03


def test_plain_langevin_keeps_the_mode_weights_of_its_start(keys, starts):
    @jax.jit
    @jax.vmap
    def sample(key, x):
        score_fn = functools.partial(MIXTURE.score, sigma=0.0)
        return langevin_dynamics(key, score_fn, x, step_size=0.1, num_steps=1000)

    share = upper_mode_share(sample(keys, starts))
    assert abs(share - 0.8) > 0.2
    # The start is symmetric; the basin of the heavier mode reaches a little over the middle.
    assert abs(share - 0.5) < 0.1


@pytest.mark.parametrize("step_size", [0.05, 0.5])
def test_stationary_variance_depends_on_the_step_size_in_closed_form(keys, step_size):
    """On N(0, 1) the chain is x ← (1 − α) x + √(2α) z, whose variance settles at 1/(1 − α/2)."""
    sample = jax.jit(
        jax.vmap(
            lambda key: langevin_dynamics(key, lambda x: -x, jnp.zeros(8), step_size=step_size, num_steps=200)
        )
    )
    variance = float(jnp.var(sample(keys)))
    expected = 1 / (1 - step_size / 2)
    standard_error = expected * np.sqrt(2 / (8 * NUM_CHAINS))
    assert abs(variance - expected) < 4 * standard_error


def test_temperature_scales_the_stationary_variance(keys):
    sample = jax.jit(
        jax.vmap(
            lambda key: langevin_dynamics(
                key, lambda x: -x, jnp.zeros(8), step_size=0.5, num_steps=50, temperature=0.25
            )
        )
    )
    expected = 0.25 / (1 - 0.5 / 2)
    standard_error = expected * np.sqrt(2 / (8 * NUM_CHAINS))
    assert abs(float(jnp.var(sample(keys))) - expected) < 4 * standard_error


def test_langevin_step_adds_drift_and_noise():
    key, x, score = jax.random.key(2), jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])
    expected = x + 0.02 * score + np.sqrt(0.04) * jax.random.normal(key, (2,))
    np.testing.assert_allclose(langevin_step(key, score, x, 0.02), expected, rtol=1e-6)


def test_langevin_at_temperature_zero_descends_the_potential():
    x = langevin_dynamics(
        jax.random.key(3), lambda x: -x, jnp.ones(2), step_size=0.1, num_steps=10, temperature=0.0
    )
    np.testing.assert_allclose(x, 0.9**10, rtol=1e-5)


def test_annealed_langevin_runs_langevin_dynamics_level_by_level():
    key, x = jax.random.key(4), jnp.array([3.0, -1.0])
    sigmas = geometric_sigmas(4.0, 0.5, 3)
    options = dict(step_size=0.01, steps_per_scale=7)
    annealed = annealed_langevin_dynamics(key, MIXTURE.score, x, sigmas, **options)
    for i, sigma in enumerate(sigmas):
        x = langevin_dynamics(
            jax.random.fold_in(key, i),
            functools.partial(MIXTURE.score, sigma=sigma),
            x,
            step_size=0.01 * float(sigma / sigmas[-1]) ** 2,
            num_steps=7,
        )
    np.testing.assert_allclose(annealed, x, rtol=1e-5)
    final = annealed_langevin_dynamics(
        key, MIXTURE.score, jnp.array([3.0, -1.0]), sigmas, denoise=True, **options
    )
    np.testing.assert_allclose(final, x + 0.25 * MIXTURE.score(x, 0.5), rtol=1e-5)


def test_denoised_result_is_the_posterior_mean_of_the_clean_data():
    """For data N(0, 1), E[x₀ | x] = x / (1 + σ²)."""
    sigmas = jnp.array([2.0])
    x = annealed_langevin_dynamics(
        jax.random.key(5),
        lambda x, sigma: -x / (1 + sigma**2),
        jnp.array([3.0]),
        sigmas,
        step_size=0.1,
        steps_per_scale=0,
        denoise=True,
    )
    np.testing.assert_allclose(x, 3.0 / 5.0, rtol=1e-6)


def test_a_langevin_chain_depends_on_its_key_and_not_on_the_batch(keys, starts):
    sigmas = geometric_sigmas(4.0, 0.5, 3)

    def sample(key, x):
        return annealed_langevin_dynamics(key, MIXTURE.score, x, sigmas, step_size=0.01, steps_per_scale=20)

    together = jax.jit(jax.vmap(sample))(keys[:64], starts[:64])
    seven = jax.jit(jax.vmap(sample))(keys[10:17], starts[10:17])
    alone = jax.jit(sample)(keys[10], starts[10])
    np.testing.assert_allclose(seven, together[10:17], rtol=1e-4)
    np.testing.assert_allclose(alone, together[10], rtol=1e-4)
