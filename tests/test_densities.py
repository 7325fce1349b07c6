"""Exact densities: their normalisation, convolution with noise, samples and scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from ncsn_jax.densities import (
    BoxUniform,
    GaussianMixture,
    _mills_ratio,
    checkerboard,
    eight_gaussians,
    score_of,
    swiss_roll,
    two_gaussians,
    two_moons,
)

MEANS = np.array([[-1.0, 0.5, 2.0], [1.5, 0.0, -1.0]], np.float32)
WEIGHTS = np.array([0.3, 0.7], np.float32)
STDS = {
    "one for all": np.float32(0.8),
    "one per component": np.array([0.5, 1.2], np.float32),
    "one per coordinate": np.array([[0.5, 1.0, 2.0], [0.8, 0.3, 1.1]], np.float32),
}
X = np.array([[0.2, -0.3, 1.0], [4.0, 0.0, -2.0], [-30.0, 20.0, 5.0]], np.float32)


def scipy_log_density(stds, x, sigma):
    """The mixture's log-density in double precision."""
    shares = []
    for k, mean in enumerate(MEANS):
        std = np.broadcast_to(stds if np.ndim(stds) == 0 else stds[k], 3)
        covariance = np.diag(np.float64(std) ** 2 + sigma**2)
        shares.append(np.log(WEIGHTS[k]) + stats.multivariate_normal(mean, covariance).logpdf(x))
    return np.logaddexp(*shares)


@pytest.mark.parametrize("sigma", [0.0, 0.4, 5.0])
@pytest.mark.parametrize("kind", STDS)
def test_mixture_log_density_equals_scipys(kind, sigma):
    mixture = GaussianMixture(WEIGHTS, MEANS, STDS[kind])
    for x in X:
        expected = scipy_log_density(STDS[kind], x, sigma)
        np.testing.assert_allclose(mixture.log_density(jnp.asarray(x), sigma), expected, rtol=1e-5)


@pytest.mark.parametrize("sigma", [0.0, 0.4, 5.0])
@pytest.mark.parametrize("kind", STDS)
def test_mixture_score_is_the_gradient_of_its_log_density(kind, sigma):
    mixture = GaussianMixture(WEIGHTS, MEANS, STDS[kind])
    for x in jnp.asarray(X):
        expected = score_of(mixture.log_density)(x, sigma)
        np.testing.assert_allclose(mixture.score(x, sigma), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", STDS)
def test_mixture_samples_have_the_moments_of_the_perturbed_mixture(kind):
    sigma, count = 0.7, 100_000
    mixture = GaussianMixture(WEIGHTS, MEANS, STDS[kind])
    keys = jax.random.split(jax.random.key(0), count)
    x = np.asarray(jax.vmap(lambda key: mixture.sample(key, sigma))(keys), np.float64)
    stds = STDS[kind][:, None] if np.ndim(STDS[kind]) == 1 else STDS[kind]
    variances = np.broadcast_to(stds, (2, 3)) ** 2 + sigma**2
    mean = WEIGHTS @ MEANS
    square = WEIGHTS @ (variances + MEANS**2)
    error = np.stack([x - mean, x**2 - square])
    assert np.abs(error.mean(1) / error.std(1) * np.sqrt(count)).max() < 4


def test_score_does_not_depend_on_the_normalising_constant():
    p = two_gaussians()
    x = jnp.array([0.5, -2.0])
    for constant in (1e-6, 1.0, 1e6):
        scaled = score_of(lambda x, c=constant: jnp.log(c * jnp.exp(p.log_density(x))))(x)
        np.testing.assert_allclose(scaled, p.score(x), rtol=1e-5)


def test_mixture_takes_lists_and_unnormalised_weights():
    lists = GaussianMixture([1, 4], [[-5, -5], [5, 5]], [1, 1])
    x = jnp.array([0.1, 0.2])
    np.testing.assert_allclose(lists.score(x, 2.0), two_gaussians().score(x, 2.0), rtol=1e-6)


def test_mixture_can_be_jitted_vmapped_and_differentiated():
    """A pytree: its constructor accepts any leaves that jax passes."""
    mixture = GaussianMixture(WEIGHTS, MEANS, STDS["one per component"])
    x = jnp.asarray(X[0])
    expected = mixture.log_density(x)
    np.testing.assert_allclose(jax.jit(GaussianMixture.log_density)(mixture, x), expected, rtol=1e-5)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), mixture)
    axes = GaussianMixture(weights=None, means=0, stds=None)
    moved = jax.vmap(GaussianMixture.log_density, (axes, None))(stacked.replace(weights=WEIGHTS, stds=1.0), x)
    assert moved.shape == (2,)
    gradient = jax.grad(GaussianMixture.log_density)(mixture, x)
    # Moving all means is moving the point the other way.
    np.testing.assert_allclose(gradient.means.sum(0), -mixture.score(x), rtol=1e-4)
    assert jax.tree.unflatten(jax.tree.structure(mixture), [object()] * 3)


def test_densities_refuse_a_batch_without_vmap():
    """For a mixture on the line, five numbers are five points and need `jax.vmap`."""
    p = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], 1.0)
    for function in (p.log_density, p.score):
        with pytest.raises(ValueError, match=r"the shape \(1,\), found \(5,\)"):
            function(jnp.zeros(5))


@pytest.mark.parametrize("sigma", [0.05, 0.5, 20.0])
def test_perturbed_box_density_equals_the_convolution_by_quadrature(sigma):
    """Against quadrature in double precision, inside, at the edge and outside."""
    box = BoxUniform(jnp.array([-1.0]), jnp.array([2.0]))
    for x in (-1.0, 0.3, 2.0, 2.0 + 6 * sigma):

        def integral(weight, x=x):
            def integrand(u):
                return weight(u) * stats.norm.pdf(x, u, sigma) / 3

            # The slope in the box is almost zero, so no relative precision can be asked of it.
            return integrate.quad(integrand, -1, 2, epsabs=1e-14, epsrel=1e-6, points=[min(x, 2)])[0]

        value, slope = integral(lambda u: 1.0), integral(lambda u, x=x: (u - x) / sigma**2)
        point = jnp.array([x])
        np.testing.assert_allclose(box.log_density(point, sigma), np.log(value), rtol=1e-4)
        np.testing.assert_allclose(box.score(point, sigma), [slope / value], rtol=1e-4, atol=1e-4 / sigma)
        gradient = score_of(box.log_density)(point, sigma)
        np.testing.assert_allclose(box.score(point, sigma), gradient, rtol=2e-3, atol=1e-3 / sigma)


def test_mills_ratio_equals_scipys():
    t = np.linspace(-12, 60, 20_001).astype(np.float32)
    expected = np.sqrt(np.pi / 2) * special.erfcx(np.float64(t) / np.sqrt(2))
    np.testing.assert_allclose(_mills_ratio(jnp.asarray(t)), expected, rtol=5e-5)


@pytest.mark.parametrize("side", [-1.0, 1.0])
@pytest.mark.parametrize("distance", [30.0, 1e3, 1e5])
def test_box_score_far_outside_has_its_asymptotic_value_and_slope(side, distance):
    """The score tends to −(t + 1/t)/σ at a distance of t·σ, and its slope to −1/σ²."""
    box, sigma = BoxUniform(jnp.array([-1.0]), jnp.array([1.0])), 0.1
    x = jnp.array([side * (1.0 + distance * sigma)])
    expected = -side * (distance + 1 / distance) / sigma
    np.testing.assert_allclose(box.score(x, sigma), [expected], rtol=1e-4)
    if distance < 1e3:
        slope = jax.jacfwd(lambda x: box.score(x, sigma))(x)
        np.testing.assert_allclose(slope, [[-1 / sigma**2]], rtol=0.02)


@pytest.mark.parametrize("sigma", [1e-3, 1.0, 1e3])
def test_box_score_has_finite_slopes_around_the_box(sigma):
    box = BoxUniform(jnp.zeros(1), jnp.ones(1))
    for x in (-0.5, 0.0, 0.2, 0.5, 1.0, 1.001):
        slope = jax.jacfwd(lambda x: box.score(x, sigma))(jnp.array([x]))
        assert np.isfinite(slope).all()
    # Wide noise turns any box into a Gaussian.
    if sigma == 1e3:
        expected = -(0.1 - 0.5) / (sigma**2 + 1 / 12)
        np.testing.assert_allclose(box.score(jnp.array([0.1]), sigma), [expected], rtol=1e-3)


def test_box_without_noise_is_flat_inside_and_zero_outside():
    box = BoxUniform(jnp.array([0.0, -1.0]), jnp.array([2.0, 1.0]))
    np.testing.assert_allclose(box.log_density(jnp.array([1.0, 0.5])), -np.log(4))
    assert box.log_density(jnp.array([1.0, 1.5])) == -jnp.inf
    np.testing.assert_array_equal(box.score(jnp.array([1.0, 0.5])), [0, 0])
    x = jax.vmap(box.sample)(jax.random.split(jax.random.key(1), 10_000))
    assert (x.min(0) >= box.low).all()
    assert (x.max(0) <= box.high).all()
    assert np.abs(x.mean(0) - np.array([1.0, 0.0])).max() < 4 * 2 / np.sqrt(12 * 10_000)


def test_boundary_flux_of_the_identity_is_the_dimension():
    """∮ x·n dS / volume = D for every box."""
    box = BoxUniform(jnp.array([0.0, -1.0, 3.0]), jnp.array([2.0, 1.0, 4.0]))
    np.testing.assert_allclose(box.boundary_flux(lambda x: x, jnp.array([0.5, 0.0, 3.1])), 3.0, rtol=1e-6)


def draws(sample, count=4_000):
    return np.asarray(jax.vmap(sample)(jax.random.split(jax.random.key(2), count)))


def test_two_moons_are_half_circles():
    x = draws(lambda key: two_moons(key, noise=0.0))
    centres = np.array([[-1.0, -0.5], [1.0, 0.5]])
    distance = np.linalg.norm(x[:, None] - centres, axis=2)
    np.testing.assert_allclose(np.abs(distance - 2).min(axis=1), 0, atol=1e-5)
    assert np.abs(x.mean(0)).max() < 4 * x.std() / np.sqrt(len(x))


def test_the_swiss_roll_winds_outwards():
    x = draws(lambda key: swiss_roll(key, noise=0.0))
    radius, angle = np.linalg.norm(x, axis=1), np.arctan2(x[:, 1], x[:, 0])
    turns = (radius * 4.5 * np.pi / 4 - angle) / (2 * np.pi)
    np.testing.assert_allclose(turns, np.round(turns), atol=1e-4)
    assert radius.min() > 4 / 3 - 0.01
    assert radius.max() < 4 + 0.01


def test_the_checkerboard_fills_its_dark_squares():
    x = draws(checkerboard)
    column, row = np.floor((x + 4) / 2).astype(int).T
    assert set(zip(column, row, strict=True)) == {
        (c, r) for c in range(4) for r in range(4) if c % 2 == r % 2
    }
    counts = np.bincount(row * 4 + column, minlength=16)
    counts = counts[counts > 0]
    assert np.abs(counts - len(x) / 8).max() < 4 * np.sqrt(len(x) * 7) / 8


def test_eight_gaussians_lie_on_a_circle():
    p = eight_gaussians(radius=3.0, std=0.1)
    np.testing.assert_allclose(np.linalg.norm(p.means, axis=1), 3.0, rtol=1e-6)
    x = draws(p.sample)
    nearest = np.linalg.norm(x[:, None] - np.asarray(p.means), axis=2).argmin(axis=1)
    assert np.abs(np.bincount(nearest) - 500).max() < 4 * np.sqrt(4_000 * 7) / 8
