"""Gaussian fields and their exact posteriors, against dense covariances in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ncsn_jax import Observation
from ncsn_jax.densities import GaussianField
from ncsn_jax.operators import Compose, Convolution, FourierMask, Mask

SHAPE = (4, 6)
KEY = jax.random.key(0)
PSF = np.array([[0.0, 0.1, 0.0], [0.2, 0.5, 0.1], [0.0, 0.1, 0.0]])
KNOWN = np.random.default_rng(0).random(SHAPE) < 0.6
NOISE_MAP = np.exp(np.random.default_rng(1).normal(size=SHAPE) - 1)
FREQUENCIES = np.random.default_rng(2).random(SHAPE) < 0.5


def power(k):
    return 0.05 / (0.1 + k) ** 2


FIELD = GaussianField(SHAPE, power)


def covariance(field=FIELD):
    """The dense covariance: a pixel's column is its filtered unit vector."""
    units = np.eye(24).reshape(-1, *SHAPE)
    filtered = np.fft.ifft2(np.asarray(field.power, float) * np.fft.fft2(units)).real
    return filtered.reshape(24, 24).T


def test_power_is_a_function_of_the_wave_number_or_its_values():
    k = np.hypot(np.fft.fftfreq(4)[:, None], np.fft.fftfreq(6))
    np.testing.assert_allclose(FIELD.power, power(k), rtol=1e-5)
    x = FIELD.sample(KEY)
    np.testing.assert_allclose(GaussianField(SHAPE, power(k)).score(x), FIELD.score(x), rtol=1e-4, atol=1e-5)
    channels = GaussianField((*SHAPE, 2), power)
    pair = jnp.stack([x, 2 * x], -1)
    np.testing.assert_allclose(
        channels.score(pair), jnp.stack([FIELD.score(x), 2 * FIELD.score(x)], -1), rtol=1e-4
    )


@pytest.mark.parametrize("sigma", [0.0, 0.7])
def test_density_and_score_equal_scipys(sigma):
    x = FIELD.sample(KEY, sigma)
    noisy = covariance() + sigma**2 * np.eye(24)
    expected = stats.multivariate_normal(np.zeros(24), noisy).logpdf(np.asarray(x, float).ravel())
    np.testing.assert_allclose(FIELD.log_density(x, sigma), expected, rtol=1e-5)
    score = -np.linalg.solve(noisy, np.asarray(x, float).ravel())
    np.testing.assert_allclose(FIELD.score(x, sigma).ravel(), score, atol=1e-4 * np.abs(score).max())


def assert_moments(x, mean, expected):
    """8,192 draws: every mean within 4.5 standard errors, the covariance within 6 % of its norm."""
    x = np.asarray(x, float).reshape(len(x), -1)
    std = np.sqrt(np.diag(expected))
    assert np.abs((x.mean(0) - mean) / std).max() < 4.5 / np.sqrt(len(x))
    assert np.linalg.norm(np.cov(x.T) - expected) < 0.06 * np.linalg.norm(expected)


def test_samples_have_the_covariance():
    x = jax.vmap(lambda key: FIELD.sample(key, 0.5))(jax.random.split(KEY, 8192))
    assert_moments(x, np.zeros(24), covariance() + 0.25 * np.eye(24))


def of_parts(v):
    v = np.asarray(v).reshape(len(v), -1)
    return np.concatenate([v.real, v.imag], 1) if np.iscomplexobj(v) else v


@pytest.mark.parametrize(
    ("operator", "noise"),
    [
        pytest.param(Mask(KNOWN), 0.3, marks=pytest.mark.slow),
        (Mask(KNOWN), NOISE_MAP),
        pytest.param(Convolution(PSF), NOISE_MAP, marks=pytest.mark.slow),
        pytest.param(Compose(Mask(KNOWN), Convolution(PSF)), 0.3, marks=pytest.mark.slow),
        pytest.param(FourierMask(FREQUENCIES), 0.3, marks=pytest.mark.slow),
    ],
    ids=["mask", "mask and map", "blur and map", "masked blur", "frequencies"],
)
def test_posterior_equals_the_dense_one(operator, noise):
    truth_key, noise_key, key = jax.random.split(KEY, 3)
    clean = operator(FIELD.sample(truth_key))
    y = clean + noise * jax.random.normal(noise_key, clean.shape, clean.dtype)
    observation = Observation(y, operator, noise)
    a = of_parts(jax.vmap(operator)(jnp.eye(24).reshape(-1, *SHAPE))).T.astype(float)
    n = of_parts(np.full((1, *SHAPE), noise) * (1 + 1j if np.iscomplexobj(y) else 1))[0] ** 2
    prior = covariance()
    gain = prior @ a.T @ np.linalg.inv(a @ prior @ a.T + np.diag(n))
    mean = gain @ of_parts(y[None])[0]
    found = jax.jit(FIELD.posterior_mean)(observation)
    np.testing.assert_allclose(found.ravel(), mean, atol=1e-4 * np.abs(mean).max())
    draw = jax.jit(jax.vmap(FIELD.posterior_sample, (0, None)))
    assert_moments(draw(jax.random.split(key, 8192), observation), mean, prior - gain @ a @ prior)


def test_field_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"x must have the shape of the field, \(4, 6\), found \(6, 4\)"):
        FIELD.score(jnp.zeros((6, 4)))
    with pytest.raises(ValueError, match=r"noise_std must be a number or a map .* found a function"):
        FIELD.posterior_sample(KEY, Observation(jnp.zeros(SHAPE), Mask(KNOWN), lambda v: v))
