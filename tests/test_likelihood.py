"""The probability flow's likelihood where the density is exact, and bits per dimension by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from ncsn_jax import NCSN, GaussianMixture, as_score_fn, losses
from ncsn_jax.data.datasets import TRANSFORMS
from ncsn_jax.likelihood import bits_per_dim, hutchinson, log_jacobian, log_likelihood

START = 0.02
ROTATION = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0].astype(np.float32)
VARIANCES = np.array([0.25, 1.0, 4.0], np.float32)


def mixture(dim):
    """Three modes, with ‖E x‖ = 0.3 in 2 dimensions and 2.466 in 16."""
    corners = np.linalg.qr(np.random.default_rng(0).standard_normal((dim, 3)))[0].T if dim > 2 else None
    means = 4.0 * corners if dim > 2 else np.array([[-3.0, -3.0], [3.0, -3.0], [0.0, 3.0]])
    return GaussianMixture(
        jnp.array([0.2, 0.3, 0.5]), jnp.asarray(means, jnp.float32), jnp.array([0.5, 0.7, 0.9])
    )


def isotropic(x, sigma):
    """The score of N(0, I) under noise."""
    return -x / (1.0 + sigma**2)


def correlated(x, sigma):
    """The score of N(0, R diag(VARIANCES) Rᵀ) under noise: its Jacobian isn't diagonal."""
    return -ROTATION @ ((ROTATION.T @ x) / (VARIANCES + sigma**2))


@functools.cache
def points(dim):
    """Points of the mixture at the first level, and their exact log-densities."""
    p = mixture(dim)
    x = jax.vmap(functools.partial(p.sample, sigma=START))(jax.random.split(jax.random.key(1), 64))
    return x, jax.vmap(functools.partial(p.log_density, sigma=START))(x)


@functools.cache
def by_exact_trace(dim):
    """By the flow up to σ = 50, where the exact noisy density is the prior."""
    p = mixture(dim)
    run = functools.partial(
        log_likelihood, p.score, start=START, stop=50.0, prior_log_density=lambda x: p.log_density(x, 50.0)
    )
    return jax.jit(jax.vmap(run))(points(dim)[0])


@pytest.mark.parametrize("dim", [2, 16])
def test_log_likelihood_equals_the_exact_log_density_of_a_mixture(dim):
    error = (by_exact_trace(dim) - points(dim)[1]) / dim
    assert np.abs(error).max() < 5e-4  # nats a dimension


def test_error_of_the_gaussian_prior_is_small_at_large_noise():
    """About ‖E x₀‖/σ nats for all dimensions together."""
    x, exact = points(16)
    run = jax.jit(jax.vmap(functools.partial(log_likelihood, mixture(16).score), in_axes=(0, None, None)))
    np.testing.assert_allclose(np.std(run(x, START, 50.0) - exact), 2.466 / 50.0, rtol=0.3)
    assert np.abs(run(x, START, 1000.0) - exact).max() < 1e-2


def test_one_probe_gives_the_exact_likelihood_of_a_gaussian():
    """Its Jacobian is diagonal, so probes of signs give its trace exactly.

    The integral is D/2 log((1 + stop²)/(1 + start²)), here 4.8: another sign or factor would fail.
    """
    x = jnp.array([[3.0], [-1.0], [0.5]])

    def log_density(x, sigma):
        return jnp.sum(norm.logpdf(x, 0.0, jnp.sqrt(1.0 + sigma**2)))

    @jax.jit
    def run(key):
        prior = functools.partial(log_density, sigma=5.0)
        return log_likelihood(isotropic, x, 0.1, 5.0, divergence=hutchinson(key, x), prior_log_density=prior)

    np.testing.assert_allclose(run(jax.random.key(0)), log_density(x, 0.1), atol=1e-3)


def test_flow_density_integrates_to_one_for_any_score_function():
    """Even if it is not the score of a density: the flow maps N(0, stop² I) to a density of integral 1."""

    def score_fn(x, sigma):
        return -(x + 0.8 * jnp.sin(x)) / (1.0 + sigma**2)

    grid = jnp.linspace(-8.0, 8.0, 201)[:, None]
    density = jnp.exp(jax.jit(jax.vmap(lambda x: log_likelihood(score_fn, x, 0.1, 4.0)))(grid))
    assert float(jnp.max(density)) > 1.0
    np.testing.assert_allclose(np.trapezoid(density, dx=0.08), 1.0, atol=1e-3)


def test_likelihood_estimated_with_probes_is_unbiased():
    p, x = mixture(16), points(16)[0][0]

    def run(key):
        return log_likelihood(
            p.score,
            x,
            START,
            50.0,
            divergence=hutchinson(key, x),
            prior_log_density=lambda x: p.log_density(x, 50.0),
        )

    estimates = np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(2), 1024)))
    error = np.mean(estimates) - float(by_exact_trace(16)[0])
    assert np.std(estimates) > 0.05  # or it would be no estimate
    assert abs(error) < 4 * np.std(estimates) / np.sqrt(1024)


@pytest.mark.parametrize(("projection", "off_diagonal"), [("rademacher", True), ("gaussian", False)])
def test_hutchinson_divergence_has_the_exact_mean_and_variance(projection, off_diagonal):
    x, fn = jnp.array([0.5, -1.0, 2.0]), functools.partial(correlated, sigma=0.5)
    jacobian = np.asarray(jax.jacfwd(fn)(x))
    variance = 2 / 4 * np.sum((jacobian - off_diagonal * np.diag(np.diag(jacobian))) ** 2)

    def run(key):
        return hutchinson(key, x, num_probes=4, projection=projection)(fn, x)

    estimates = np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(3), 20_000)))
    error = np.mean(estimates) - float(losses.divergence(fn, x))
    assert abs(error) < 4 * np.sqrt(variance / 20_000)
    np.testing.assert_allclose(np.var(estimates), variance, rtol=0.1)


def test_likelihood_depends_on_its_own_key_and_not_on_the_batch():
    keys, x = jax.random.split(jax.random.key(4), 7), jax.random.normal(jax.random.key(5), (7, 3))

    @jax.jit
    @jax.vmap
    def run(key, x):
        return log_likelihood(correlated, x, 0.1, 5.0, divergence=hutchinson(key, x))

    together = run(keys, x)
    np.testing.assert_allclose(run(keys[3:4], x[3:4]), together[3:4], rtol=1e-5)
    assert abs(run(keys[:1], x[3:4])[0] - together[3]) > 1e-2


def test_log_likelihood_is_nan_when_the_solver_runs_out_of_steps():
    assert np.isnan(log_likelihood(isotropic, jnp.ones(2), 0.1, 5.0, max_steps=2))


def test_log_likelihood_refuses_discrete_levels_and_zero_probes():
    x = jnp.zeros((8, 8, 1))
    with pytest.raises(ValueError, match="scores at any σ, found a network of 2 discrete levels"):
        log_likelihood(as_score_fn(NCSN(sigmas=(1.0, 0.5)), {}), x, 0.1, 1.0)
    with pytest.raises(ValueError, match="num_probes must be at least 1, found 0"):
        hutchinson(jax.random.key(0), x, num_probes=0)


@pytest.mark.parametrize("num_values", [2, 17, 256])
def test_uniform_grey_values_cost_log2_of_their_number_in_bits(num_values):
    np.testing.assert_allclose(bits_per_dim(0.0, 64, num_values=num_values), np.log2(num_values), rtol=1e-6)


def test_bits_per_dim_bound_the_bits_of_the_discrete_values():
    """Exact if the density is constant in a cell, and more if it isn't; at one u it may be less."""
    p = np.array([0.1, 0.2, 0.3, 0.4])
    constant = [float(bits_per_dim(np.log(4 * mass), 1, num_values=4)) for mass in p]
    np.testing.assert_allclose(constant, -np.log2(p), rtol=1e-5)

    # The density 2x, whose cells have the masses (2k + 1)/n².
    u = (np.arange(1000) + 0.5) / 1000
    bits = np.array(
        [bits_per_dim(jnp.float32(log_p), 1, num_values=4) for log_p in np.log(2 * (2 + u[::10]) / 4)]
    )
    discrete = -np.log2((2 * 2 + 1) / 16)
    assert discrete < np.mean(bits) < discrete + 0.05
    assert np.min(bits) < discrete


def test_bits_per_dim_of_a_density_depend_on_its_units():
    log_p = norm.logpdf(jnp.array([0.3, -0.2])).sum()
    np.testing.assert_allclose(bits_per_dim(log_p, 2), -log_p / 2 / np.log(2), rtol=1e-6)
    np.testing.assert_allclose(
        bits_per_dim(log_p + 2 * np.log(8.0), 2), bits_per_dim(log_p, 2) - 3.0, rtol=1e-5
    )


def test_log_jacobian_of_each_transform_equals_its_formula():
    x = jax.random.uniform(jax.random.key(6), (4, 4, 3))
    assert log_jacobian(TRANSFORMS["none"].forward, x) == 0.0
    np.testing.assert_allclose(log_jacobian(TRANSFORMS["rescale"].forward, x), 48 * np.log(2.0), rtol=1e-6)
    inside = 1e-6 + (1 - 2e-6) * np.asarray(x, np.float64)
    expected = np.sum(np.log((1 - 2e-6) / (inside * (1 - inside))))
    np.testing.assert_allclose(log_jacobian(TRANSFORMS["logit"].forward, x), expected, rtol=1e-5)


@pytest.mark.parametrize(("transform", "mass"), [("none", 0.341345), ("rescale", 0.682689), ("logit", 1.0)])
def test_density_behind_a_transform_has_the_right_mass_on_images(transform, mass):
    """N(0, 1) behind the transform; [0, 1] has the mass of its image."""
    forward = TRANSFORMS[transform].forward

    def log_density(x):
        return jnp.sum(norm.logpdf(forward(x))) + log_jacobian(forward, x)

    grid = (jnp.arange(2000) + 0.5)[:, None] / 2000
    np.testing.assert_allclose(jnp.mean(jnp.exp(jax.vmap(log_density)(grid))), mass, atol=1e-4)
