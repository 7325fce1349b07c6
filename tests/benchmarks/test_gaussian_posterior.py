"""Samples of posteriors of Gaussian fields against Wiener's filter."""

import jax
import numpy as np
import pytest

from benchmarks import gaussian_posterior as benchmark
from ncsn_jax import geometric_sigmas
from ncsn_jax.densities import GaussianField

SMALL = GaussianField((12, 12), benchmark.FIELD.power_spectrum)


def numbers(field, name, steps_per_scale, chains, num_scales):
    operator, std = benchmark.observations(field.shape[0])[name]
    observation = benchmark.observe(field, operator, std)
    sigmas = geometric_sigmas(5.0, 0.01, num_scales)
    x = benchmark.draw(field.score, observation, field.shape, steps_per_scale, chains, sigmas)
    return benchmark.compared(x, *benchmark.exact(field, observation))


@pytest.mark.slow
def test_exact_draws_have_the_exact_moments_and_others_do_not():
    operator, std = benchmark.observations(12)["blur, noise 0.2"]
    observation = benchmark.observe(SMALL, operator, std)
    mean, covariance = benchmark.exact(SMALL, observation)
    draws = jax.vmap(SMALL.posterior_sample, (0, None))(jax.random.split(jax.random.key(3), 512), observation)
    found = benchmark.compared(np.asarray(draws, float), mean, covariance)
    # 512 draws of 144 correlated pixels: errors of a few standard errors, 1/√512 = 0.044.
    assert found["mean"] < 0.03
    assert abs(found["std"] - 1) < 0.03
    assert found["spectrum"] < 0.03
    wrong = benchmark.compared(np.asarray(draws, float) * 1.2, mean, covariance)
    assert wrong["mean"] > 0.03
    assert wrong["std"] > 1.15


def test_langevin_dynamics_samples_a_masked_field():
    found = numbers(SMALL, "mask, noise 0.1", 40, 128, 20)
    assert found["mean"] < 0.08
    assert -0.04 < found["std"] - 1 < 0.05
    assert found["spectrum"] < 0.04
    # Too few steps leave spread where nothing was measured.
    assert numbers(SMALL, "mask, noise 0.1", 3, 128, 20)["std"] > 1.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "chains"),
    [
        ("mask, noise 0.1", 25, 128),
        ("blur, noise 0.2", 25, 128),
        ("masked blur, noise map", 5, 16),
        ("Fourier mask, noise 0.2", 25, 128),
    ],
)
def test_langevin_dynamics_samples_every_observation(name, steps, chains):
    """32×32 pixels: 128 chains have a standard error of 6 % in a pixel, and of 0.3 % in the mean of all."""
    found = numbers(benchmark.FIELD, name, steps, chains, 40)
    few = steps < 25
    assert found["mean"] < (0.15 if few else 0.05)
    assert -0.02 < found["std"] - 1 < (0.12 if few else 0.04)
    assert found["spectrum"] < (0.1 if few else 0.03)
