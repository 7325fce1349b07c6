"""The objectives against closed forms.

The data of these tests is N(μ, s²) in one dimension, whose score at noise level σ is −(x − μ)/(s² + σ²).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import (
    denoising_score_matching,
    explicit_score_matching,
    geometric_sigmas,
    ncsn_loss,
)

MEAN, STD, SIGMA = 1.5, 0.7, 0.4
NUM_EXAMPLES = 200_000


def gaussian_data(key):
    return MEAN + STD * jax.random.normal(key, (NUM_EXAMPLES, 1))


def linear_score(parameters, x, sigma):
    del sigma
    return parameters[0] * x + parameters[1]


def per_example_gradients(parameters, power):
    """Gradients of the denoising loss of a linear score in its two parameters, one row an example."""

    def loss(parameters, key, x):
        score_fn = functools.partial(linear_score, parameters)
        return denoising_score_matching(key, score_fn, x, SIGMA, power=power)

    data_key, noise_key = jax.random.split(jax.random.key(0))
    keys = jax.random.split(noise_key, NUM_EXAMPLES)
    x = gaussian_data(data_key)
    return np.asarray(jax.vmap(jax.grad(loss), (None, 0, 0))(parameters, keys, x))


def standard_errors_from_zero(samples):
    return samples.mean(0) / (samples.std(0) / np.sqrt(len(samples)))


def test_explicit_is_half_the_squared_distance():
    x = jnp.arange(6.0).reshape(2, 3)
    loss = explicit_score_matching(lambda x: 2 * x, x, jnp.ones((2, 3)))
    assert float(loss) == 0.5 * sum((2 * i - 1) ** 2 for i in range(6))


def test_denoising_is_stationary_at_the_score_of_the_perturbed_data():
    precision = 1 / (STD**2 + SIGMA**2)
    gradients = per_example_gradients(jnp.array([-precision, precision * MEAN]), 2.0)
    assert np.abs(standard_errors_from_zero(gradients)).max() < 4


def test_denoising_pulls_the_score_of_the_clean_data_by_what_the_noise_adds():
    """With the slope −1/s² in place of −1/(s² + σ²), the gradient in the slope is −σ⁴/s²."""
    gradients = per_example_gradients(jnp.array([-1 / STD**2, MEAN / STD**2]), 2.0)
    expected = np.array([-(SIGMA**4) / STD**2, 0.0])
    assert np.abs(standard_errors_from_zero(gradients - expected)).max() < 4


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_denoising_of_the_zero_score_is_the_mean_of_its_target(power):
    """½ σ^power E‖z/σ‖² = ½ D σ^(power − 2)."""
    event = (4, 3)
    keys = jax.random.split(jax.random.key(1), 20_000)
    x = jnp.zeros(event)

    def loss(key):
        return denoising_score_matching(key, lambda x, _: 0 * x, x, SIGMA, power=power)

    losses = np.asarray(jax.vmap(loss)(keys))
    expected = 0.5 * 12 * SIGMA ** (power - 2)
    assert abs(losses.mean() - expected) < 4 * losses.std() / np.sqrt(len(keys))


def test_denoising_is_zero_for_the_score_of_the_perturbation():
    x = jnp.array([0.3, -2.0])
    loss = denoising_score_matching(
        jax.random.key(2), lambda perturbed, sigma: (x - perturbed) / sigma**2, x, SIGMA
    )
    assert float(loss) < 1e-10


def test_ncsn_loss_visits_every_level_equally():
    """With s = 0 and power 4 the loss is ½ σ² ‖z‖²: its mean over levels weights each by 1/L."""
    sigmas = geometric_sigmas(1.0, 0.1, 3)
    keys = jax.random.split(jax.random.key(3), 100_000)
    x = jnp.zeros(5)

    def loss(key):
        return ncsn_loss(key, lambda x, _: 0 * x, x, sigmas, power=4.0)

    losses = np.asarray(jax.vmap(loss)(keys))
    expected = 0.5 * 5 * float(jnp.mean(sigmas**2))
    assert abs(losses.mean() - expected) < 4 * losses.std() / np.sqrt(len(keys))


def test_ncsn_loss_shows_the_score_function_only_levels():
    sigmas = geometric_sigmas(1.0, 0.01, 5)
    keys = jax.random.split(jax.random.key(4), 500)

    def seen(key):
        # With the target removed, what is left of the loss is ½ ‖σ‖² of the level it drew.
        return ncsn_loss(key, lambda x, sigma: -x / sigma**2 + sigma, jnp.zeros(1), sigmas, power=0.0)

    levels = np.sqrt(2 * np.asarray(jax.vmap(seen)(keys)))
    distance = np.abs(levels[:, None] / np.asarray(sigmas) - 1)
    assert distance.min(axis=1).max() < 1e-2
    assert set(distance.argmin(axis=1)) == set(range(5))
