"""The theorems of score matching, in numbers; docs/score_matching.md derives them.

Expectations are means over fixed draws. Two that must be equal are compared example by example: the mean of
their difference lies within 4 standard errors of zero.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.fitting import fit
from ncsn_jax import (
    denoising_score_matching,
    explicit_score_matching,
    implicit_score_matching,
    ncsn_loss,
    sliced_score_matching,
)
from ncsn_jax.densities import BoxUniform, GaussianMixture
from ncsn_jax.losses import divergence

COUNT = 50_000
SIGMA = 0.6
THETAS = 4
DIMENSIONS = [1, 2, 10]


def mixture(dimension):
    """Three Gaussians of different widths, with overlap."""
    means = jax.random.normal(jax.random.key(dimension), (3, dimension)) * 1.5
    return GaussianMixture(jnp.array([0.2, 0.5, 0.3]), means, jnp.array([0.6, 1.0, 0.8]))


def parametric_score(theta, x):
    """s_θ(x): a small network, smooth and far from linear."""
    return theta["v"] @ jnp.tanh(theta["w"] @ x + theta["b"]) - theta["a"] * x


def thetas(dimension):
    """Several θ, stacked."""
    w, b, v, a = jax.random.split(jax.random.key(100 + dimension), 4)
    return {
        "w": jax.random.normal(w, (THETAS, 5, dimension)),
        "b": jax.random.normal(b, (THETAS, 5)),
        "v": jax.random.normal(v, (THETAS, dimension, 5)),
        "a": jax.random.uniform(a, (THETAS,)),
    }


def keys(number):
    return jax.random.split(jax.random.key(number), COUNT)


def standard_errors_from_zero(samples):
    """How far the means over the first axis are from zero, in standard errors; the largest."""
    samples = np.asarray(samples, np.float64).reshape(len(samples), -1)
    return np.abs(samples.mean(0) / samples.std(0) * np.sqrt(len(samples))).max()


def excess_over_constant(dimension):
    """explicit(θ) − implicit(θ) − ½‖∇log p‖², of an example, as a function of θ; and the examples."""
    p = mixture(dimension)

    def excess(theta, x):
        def score_fn(x):
            return parametric_score(theta, x)

        explicit = explicit_score_matching(score_fn, x, p.score(x))
        implicit = implicit_score_matching(score_fn, x)
        return explicit - implicit - 0.5 * jnp.sum(jnp.square(p.score(x)))

    return excess, jax.vmap(p.sample)(keys(1))


def noise_excess(dimension):
    """denoising(θ) − explicit-at-σ(θ) − ½‖z/σ‖² + ½‖∇log p_σ‖², and pairs of a key and an example."""
    p = mixture(dimension)

    def excess(theta, key_and_x):
        key, x = key_and_x

        def score_fn(x, sigma):
            return parametric_score(theta, x) / sigma

        noise = jax.random.normal(key, x.shape)  # as the loss draws it
        perturbed = x + SIGMA * noise
        target = p.score(perturbed, SIGMA)
        denoising = denoising_score_matching(key, score_fn, x, SIGMA, power=0.0)
        explicit = explicit_score_matching(lambda x: score_fn(x, SIGMA), perturbed, target)
        constant = 0.5 * jnp.sum(jnp.square(noise / SIGMA)) - 0.5 * jnp.sum(jnp.square(target))
        return denoising - explicit - constant

    return excess, (keys(2), jax.vmap(p.sample)(keys(3)))


@pytest.mark.parametrize("theorem", [excess_over_constant, noise_excess])
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_objectives_differ_by_a_constant_for_every_theta(theorem, dimension):
    """The constant is the same for every θ, so their gradients in θ agree, too."""
    excess, examples = theorem(dimension)
    over_thetas = jax.jit(jax.vmap(jax.vmap(excess, (0, None)), (None, 0)))
    assert standard_errors_from_zero(over_thetas(thetas(dimension), examples)) < 4
    gradients = jax.jit(jax.vmap(jax.vmap(jax.grad(excess), (0, None)), (None, 0)))
    for gradient in jax.tree.leaves(gradients(thetas(dimension), examples)):
        assert standard_errors_from_zero(gradient) < 4


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_leaving_out_the_constant_between_objectives_is_detected(dimension):
    """The test above can fail: without the constant, the means are tens of standard errors from zero."""
    excess, x = excess_over_constant(dimension)
    p = mixture(dimension)
    half_square = 0.5 * jnp.sum(jnp.square(jax.vmap(p.score)(x)), axis=1)
    theta = jax.tree.map(lambda leaf: leaf[0], thetas(dimension))
    assert standard_errors_from_zero(jax.vmap(excess, (None, 0))(theta, x) + half_square) > 20


def box(dimension):
    return BoxUniform(-jnp.ones(dimension), jnp.linspace(1.0, 2.0, dimension))


@pytest.mark.parametrize(("density", "sigma"), [(mixture, 0.0), (mixture, SIGMA), (box, SIGMA)])
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_integration_by_parts_holds_for_smooth_densities(dimension, density, sigma):
    """E[f·∇log p] = −E[∇·f], for f = s_θ; on the box, too, once noise has made it smooth."""
    p = density(dimension)

    def both_sides(theta, x):
        def f(x):
            return parametric_score(theta, x)

        return jnp.sum(f(x) * p.score(x, sigma)) + divergence(f, x)

    x = jax.vmap(lambda key: p.sample(key, sigma))(keys(4))
    sums = jax.jit(jax.vmap(jax.vmap(both_sides, (0, None)), (None, 0)))(thetas(dimension), x)
    assert standard_errors_from_zero(sums) < 4


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_integration_by_parts_on_the_box_needs_a_boundary_term(dimension):
    """E[f·∇log p] = 0 differs from −E[∇·f] by exactly the flux through the sides."""
    p = box(dimension)

    def terms(theta, x):
        def f(x):
            return parametric_score(theta, x)

        return jnp.sum(f(x) * p.score(x)), divergence(f, x), p.boundary_flux(f, x)

    x = jax.vmap(p.sample)(keys(5))
    each_theta = jax.jit(jax.vmap(jax.vmap(terms, (0, None)), (None, 0)))
    left, right, flux = each_theta(thetas(dimension), x)
    assert not np.any(left)
    assert standard_errors_from_zero(right) > 20
    assert standard_errors_from_zero(left + right - flux) < 4


def test_implicit_and_explicit_losses_on_the_box_differ_by_more_than_a_constant():
    """For s(x) = a x on [0, 1]: explicit is a²/6, implicit a²/6 + a. Least at 0, and at −3."""
    p = BoxUniform(jnp.zeros(1), jnp.ones(1))
    x = jax.vmap(p.sample)(keys(6))
    for a in (-3.0, 0.0, 2.0):

        def score_fn(x, a=a):
            return a * x

        explicit = np.asarray(jax.vmap(lambda x: explicit_score_matching(score_fn, x, p.score(x)))(x))
        implicit = np.asarray(jax.vmap(lambda x: implicit_score_matching(score_fn, x))(x))
        np.testing.assert_allclose(implicit - explicit, a, rtol=1e-5, atol=1e-6)
        assert abs(explicit.mean() - a**2 / 6) <= 4 * explicit.std() / np.sqrt(COUNT)


@pytest.mark.parametrize("projection", ["rademacher", "gaussian", "sphere"])
@pytest.mark.parametrize("dimension", [2, 10])
def test_variance_reduction_lowers_the_variance_of_the_sliced_loss(dimension, projection):
    """Over data and projections together, for every θ."""

    def loss(theta, key, x, *, variance_reduced):
        return sliced_score_matching(
            key,
            lambda x: parametric_score(theta, x),
            x,
            projection=projection,
            variance_reduced=variance_reduced,
        )

    x = jax.vmap(mixture(dimension).sample)(keys(9))

    def variances(variance_reduced):
        of_example = functools.partial(loss, variance_reduced=variance_reduced)
        of_all = jax.vmap(jax.vmap(of_example, (None, 0, 0)), (0, None, None))
        return of_all(thetas(dimension), keys(10), x).var(1)

    reduced, plain = variances(True), variances(False)
    assert (reduced < 0.9 * plain).all()


MEAN = np.array([1.0, -2.0])
COVARIANCE = np.array([[1.5, 0.6], [0.6, 0.8]])

OBJECTIVES = {
    "explicit": lambda key, s, x: explicit_score_matching(
        s, x, -jnp.linalg.solve(jnp.asarray(COVARIANCE), x - jnp.asarray(MEAN))
    ),
    "implicit": lambda key, s, x: implicit_score_matching(s, x),
    "sliced": lambda key, s, x: sliced_score_matching(key, s, x),
    "sliced, not variance-reduced": lambda key, s, x: sliced_score_matching(
        key, s, x, projection="gaussian", variance_reduced=False
    ),
    "denoising": lambda key, s, x: denoising_score_matching(key, lambda x, sigma: s(x), x, SIGMA),
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_minimiser_is_the_score(objective):
    """A linear score trained on N(μ, Σ) becomes −Σ⁻¹(x − μ), with Σ + σ²I for denoising: to 2 %."""
    factor = jnp.asarray(np.linalg.cholesky(COVARIANCE), jnp.float32)
    steps = 1500

    def loss(key, theta):
        data_key, loss_key = jax.random.split(key)
        x = jnp.asarray(MEAN, jnp.float32) + factor @ jax.random.normal(data_key, (2,))
        return OBJECTIVES[objective](loss_key, lambda x: theta["a"] @ x + theta["b"], x)

    theta = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(2)}
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, steps))
    trained, _ = fit(jax.random.key(8), loss, theta, optimizer, num_steps=steps, batch_size=2048)

    noise = SIGMA**2 * np.eye(2) if objective == "denoising" else 0.0
    precision = np.linalg.inv(COVARIANCE + noise)
    assert np.abs(trained["a"] + precision).max() < 0.02 * np.abs(precision).max()
    assert np.abs(trained["b"] - precision @ MEAN).max() < 0.02 * np.abs(precision @ MEAN).max()


def test_the_minimiser_of_ncsn_loss_is_the_score_at_each_level():
    """Linear scores, one a level, trained by `ncsn_loss` on N(μ, Σ) become −(Σ + σ²I)⁻¹(x − μ): to 2 %."""
    sigmas = jnp.array([1.2, 0.5])
    factor = jnp.asarray(np.linalg.cholesky(COVARIANCE), jnp.float32)

    def loss(key, theta):
        data_key, loss_key = jax.random.split(key)
        x = jnp.asarray(MEAN, jnp.float32) + factor @ jax.random.normal(data_key, (2,))

        def score_fn(x, sigma):
            level = jnp.argmin(jnp.abs(sigmas - sigma))
            return theta["a"][level] @ x + theta["b"][level]

        return ncsn_loss(loss_key, score_fn, x, sigmas)

    theta = {"a": jnp.zeros((2, 2, 2)), "b": jnp.zeros((2, 2))}
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 1500))
    trained, _ = fit(jax.random.key(11), loss, theta, optimizer, num_steps=1500, batch_size=4096)
    for level, sigma in enumerate(np.asarray(sigmas)):
        precision = np.linalg.inv(COVARIANCE + sigma**2 * np.eye(2))
        assert np.abs(trained["a"][level] + precision).max() < 0.02 * np.abs(precision).max()
        shift = precision @ MEAN
        assert np.abs(trained["b"][level] - shift).max() < 0.02 * np.abs(shift).max()
