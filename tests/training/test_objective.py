"""The objectives of training, with the exact score instead of a network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import GaussianMixture, geometric_sigmas, ncsn_loss
from ncsn_jax.runtime.errors import ArgumentError
from ncsn_jax.training import LogNormal, denoising_objective, sliced_objective

SIGMAS = tuple(geometric_sigmas(2.0, 0.2, 3).tolist())
COUNT = 50_000
P = GaussianMixture(weights=[0.3, 0.7], means=[[-1.0, 0.0], [1.0, 0.5]], stds=[0.7, 0.7])


OBJECTIVES = {"denoising": denoising_objective, "sliced": sliced_objective}


def losses(loss, score_fn, number=0):
    keys = jax.random.split(jax.random.key(number), COUNT)
    x = jax.vmap(P.sample)(jax.random.split(jax.random.key(100), COUNT))
    return np.asarray(jax.jit(jax.vmap(lambda key, x: loss(key, score_fn, x)))(keys, x), np.float64)


def test_denoising_objective_equals_ncsn_loss():
    key, x = jax.random.key(0), jnp.array([0.3, -1.0])
    expected = ncsn_loss(key, P.score, x, jnp.asarray(SIGMAS), power=1.0)
    assert denoising_objective(SIGMAS, power=1.0)(key, P.score, x) == expected


@pytest.mark.parametrize("power", [0.0, 2.0])
@pytest.mark.parametrize("projection", ["gaussian", "rademacher"])
def test_sliced_objective_weights_every_level_alike(projection, power):
    """At the exact score its mean is −½ σ^power E‖∇log p_σ‖², averaged over the levels."""
    keys = jax.random.split(jax.random.key(7), COUNT)

    def half_square(key, sigma):
        score = P.score(P.sample(key, sigma), sigma)
        return 0.5 * sigma**power * jnp.sum(jnp.square(score))

    levels = jnp.asarray(SIGMAS)
    squares = np.asarray(jax.vmap(jax.vmap(half_square, (0, None)), (None, 0))(keys, levels), np.float64)
    objective = sliced_objective(SIGMAS, power=power, projection=projection, num_projections=2)
    found = losses(objective, P.score)
    error = found.mean() + squares.mean()
    standard_error = np.sqrt(found.var() / COUNT + squares.var(1).mean() / squares.size)
    assert abs(error) < 4 * standard_error
    assert standard_error < 0.02 * squares.mean()


def test_sliced_and_denoising_objectives_differ_by_a_constant_in_the_score():
    """Two scores differ by the same loss under both, so training pulls the same way."""

    def other(x, sigma):
        return 0.5 * P.score(x, sigma) + jnp.sin(x)

    differences = []
    for name in ("denoising", "sliced"):
        objective = OBJECTIVES[name](SIGMAS)
        differences.append(losses(objective, other, 1) - losses(objective, P.score, 1))
    denoising, sliced = differences
    standard_error = np.sqrt((denoising.var() + sliced.var()) / COUNT)
    assert abs(denoising.mean() - sliced.mean()) < 4 * standard_error
    assert denoising.mean() > 20 * standard_error


@pytest.mark.parametrize("name", ["denoising", "sliced"])
def test_continuous_noise_is_log_uniform_between_the_levels(name):
    """The mean loss equals the mean over many equally likely geometric levels."""
    many = tuple(geometric_sigmas(SIGMAS[0], SIGMAS[-1], 200).tolist())
    objective = OBJECTIVES[name]

    def mean(loss, number):
        keys = jax.random.split(jax.random.key(number), COUNT)
        x = jax.vmap(P.sample)(jax.random.split(jax.random.key(100), COUNT))
        # This score is not exact, so every level has a different loss.
        values = jax.jit(jax.vmap(lambda key, x: loss(key, lambda x, sigma: -x / sigma, x)))(keys, x)
        values = np.asarray(values, np.float64)
        return np.mean(values), np.var(values) / COUNT

    continuous, variance = mean(objective(SIGMAS, noise="continuous"), 1)
    discrete, other = mean(objective(many), 2)
    few, _ = mean(objective(SIGMAS), 3)
    assert abs(continuous - discrete) < 4 * np.sqrt(variance + other)
    assert abs(continuous - few) > 4 * np.sqrt(variance + other)


def test_weightings_scale_the_loss_and_need_two_levels():
    key, x = jax.random.key(0), jnp.array([0.3, -1.0])
    plain = denoising_objective(SIGMAS)(key, P.score, x)
    mean = denoising_objective(SIGMAS, reduce_mean=True)(key, P.score, x)
    np.testing.assert_allclose(mean, plain, rtol=1e-6)  # 2/D with D = 2
    weighted = denoising_objective(SIGMAS, likelihood_weighting=True)(key, P.score, x)
    np.testing.assert_allclose(weighted, 2 * np.log(SIGMAS[0] / SIGMAS[-1]) * plain, rtol=1e-6)
    for wrong in ({"power": 1.0}, {"data_std": 0.5}, {"noise": LogNormal()}, {}):
        with pytest.raises(ArgumentError, match=r"accepted: power=2, noise from at least two levels"):
            denoising_objective(SIGMAS if wrong else (1.0,), likelihood_weighting=True, **wrong)


@pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_log_normal_levels_have_their_mean_and_standard_deviation(make):
    """The mean of 50,000 levels is known to 0.0036 and their standard deviation to 0.0025: 5 times these."""
    levels = []

    def score_fn(x, sigma):
        levels.append(sigma)
        return -x

    objective = make(SIGMAS, noise=LogNormal(-1.2, 0.8))
    drawn = jax.vmap(lambda key: (objective(key, score_fn, jnp.ones(2)), jnp.log(levels[-1]))[1])
    log_sigma = np.asarray(drawn(jax.random.split(jax.random.key(3), COUNT)), np.float64)
    assert abs(log_sigma.mean() + 1.2) < 0.018
    assert abs(log_sigma.std() - 0.8) < 0.0125


def test_karras_weight_is_one_over_the_square_of_the_denoisers_scale():
    """½ λ ‖D − x₀‖² with λ = (σ² + σ_d²)/(σσ_d)² and the denoiser D = x + σ² s."""
    key, x, std = jax.random.key(0), jnp.array([0.3, -1.0]), 0.5
    seen = {}

    def score_fn(x, sigma):
        seen.update(x=x, sigma=sigma)
        return P.score(x, sigma)

    found = denoising_objective(SIGMAS, noise=LogNormal(0.3, 0.5), data_std=std)(key, score_fn, x)
    sigma, perturbed = seen["sigma"], seen["x"]
    error = perturbed + sigma**2 * P.score(perturbed, sigma) - x
    weight = (sigma**2 + std**2) / (sigma * std) ** 2
    np.testing.assert_allclose(found, 0.5 * weight * jnp.sum(error**2), rtol=1e-5)
