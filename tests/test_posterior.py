"""Restoration with exact scores; samplers/test_official.py compares it with the official code."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from ncsn_jax import (
    NCSN,
    GaussianMixture,
    annealed_langevin_dynamics,
    as_score_fn,
    geometric_sigmas,
    inpaint,
    interpolate,
    posterior,
)
from ncsn_jax.interpolation import interpolate_latents, slerp
from ncsn_jax.posterior import (
    BlockAverage,
    Identity,
    Luma,
    Mask,
    Observation,
    posterior_score,
    sample_posterior,
)

KEY = jax.random.key(0)
MIXTURE = GaussianMixture(jnp.array([0.5, 0.5]), jnp.array([[-2.0, -2.0], [2.0, 2.0]]), jnp.array([0.3, 0.3]))
SIGMAS = geometric_sigmas(4.0, 0.05, 12)
OPTIONS = dict(step_size=1e-3, steps_per_scale=50)


def test_inpainting_completes_a_point_with_the_mode_that_fits():
    """One coordinate of a point near one of two modes is known: the other follows."""
    observation, mask = np.array([2.0, np.nan], np.float32), jnp.array([True, False])

    def run(key, observation):
        return inpaint(key, MIXTURE.score, jnp.zeros(2), SIGMAS, observation, mask=mask, **OPTIONS)

    x = jax.jit(jax.vmap(run, (0, None)))(jax.random.split(KEY, 500), observation)
    assert np.isfinite(x).all()
    np.testing.assert_allclose(x[:, 0], 2.0, atol=0.3)  # moved by the last update alone
    assert np.mean(x[:, 1] > 0) > 0.99
    # 0.3 within 10 % (3 standard errors of 500 samples), and the bias of the last step size.
    np.testing.assert_allclose(np.std(x[x[:, 1] > 0, 1]), 0.3, rtol=0.15)


def test_inpainting_samples_with_nothing_known_and_keeps_x_with_all_known():
    observation = jnp.array([1.0, -1.0])

    def run(mask, **options):
        return inpaint(
            KEY, MIXTURE.score, jnp.zeros(2), SIGMAS, observation, mask=mask, **(OPTIONS | options)
        )

    def sample(**options):
        return annealed_langevin_dynamics(KEY, MIXTURE.score, jnp.zeros(2), SIGMAS, **(OPTIONS | options))

    nothing = jnp.zeros(2, bool)
    np.testing.assert_allclose(run(nothing, temperature=0.0), sample(temperature=0.0), rtol=1e-5)
    np.testing.assert_allclose(
        run(nothing, temperature=0.0, denoise=True), sample(temperature=0.0, denoise=True), rtol=1e-5
    )
    last = observation + 1e-3 * MIXTURE.score(observation, SIGMAS[-1])
    np.testing.assert_allclose(run(~nothing, temperature=0.0), last, rtol=1e-5)


def test_interpolation_rows_are_samples_that_change_gradually():
    def run(key):
        return interpolate(key, MIXTURE.score, jnp.zeros(2), SIGMAS, num_interpolations=33, **OPTIONS)

    rows = jax.jit(jax.vmap(run))(jax.random.split(KEY, 400))
    assert rows.shape == (400, 33, 2)
    for k in (0, 16, 32):  # any column alone is a set of samples
        x = rows[:, k]
        share = np.mean(x[:, 0] > 0)
        assert abs(share - 0.5) < 4 * 0.5 / 20
        near = np.abs(np.abs(x) - 2.0)
        assert np.mean(near < 0.9) > 0.97
    steps = np.linalg.norm(np.diff(rows, axis=1), axis=-1)
    ends = np.linalg.norm(rows[:, 0] - rows[:, -1], axis=-1)
    assert np.median(steps) < 0.2 * np.median(ends)


def test_interpolation_ends_do_not_depend_on_the_length_of_the_row():
    def run(count):
        return interpolate(
            KEY, MIXTURE.score, jnp.zeros(2), SIGMAS, num_interpolations=count, **OPTIONS, denoise=True
        )

    long, short = run(7), run(3)
    np.testing.assert_allclose(long[0], short[0], rtol=1e-4)
    np.testing.assert_allclose(long[3], short[1], rtol=1e-3)


def test_restoration_refuses_mismatched_shapes_and_invalid_counts(unchecked):
    x = jnp.zeros((4, 4, 1))
    with pytest.raises(ValueError, match=r"one shape, found \(4, 4, 1\), \(4, 4, 1\) and \(4, 4\)"):
        unchecked(posterior).inpaint(
            KEY, MIXTURE.score, x, SIGMAS, x, mask=jnp.zeros((4, 4), bool), **OPTIONS
        )
    with pytest.raises(ValueError, match="num_interpolations must be at least 1, found 0"):
        interpolate(KEY, MIXTURE.score, jnp.zeros(2), SIGMAS, num_interpolations=0, **OPTIONS)
    with pytest.raises(ValueError, match=r"steps_per_scale at least 0, found the shape \(12,\) and -1"):
        annealed_langevin_dynamics(
            KEY, MIXTURE.score, jnp.zeros(2), SIGMAS, step_size=0.1, steps_per_scale=-1
        )


def test_annealed_langevin_takes_its_levels_as_a_tuple():
    x = jnp.zeros(2)
    rows = [
        annealed_langevin_dynamics(KEY, MIXTURE.score, x, sigmas, **OPTIONS)
        for sigmas in (SIGMAS, tuple(SIGMAS.tolist()))
    ]
    np.testing.assert_allclose(*rows, rtol=1e-5)


# --- posteriors ---


class Row(struct.PyTreeNode):
    """The inner product with a vector as an operator."""

    vector: Any

    @property
    def squared_row_length(self):
        return jnp.vdot(self.vector, self.vector)

    def __call__(self, x):
        return jnp.vdot(self.vector, x)[None]


TWO = np.array([[2.0, 2.0], [-2.0, -2.0]])
FOUR = np.array([[2.0, 2.0], [-2.0, -2.0], [2.0, -2.0], [-2.0, 2.0]])


def exact_posterior(means, a, y, noise_std):
    """The mean and covariance of p(x | y) for equal weights, standard deviations 1 and y = a·x + σ_y n."""
    evidence = np.linalg.norm(a) ** 2 + noise_std**2
    gain = a / evidence
    log_weights = -((y - means @ a) ** 2) / (2 * evidence)
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    centres = means + np.outer(y - means @ a, gain)
    mean = weights @ centres
    spread = (centres - mean).T @ np.diag(weights) @ (centres - mean)
    return mean, np.eye(2) - np.outer(gain, a) + spread


def assert_posterior(means, a, y, noise_std, steps_per_scale):
    """8,192 chains: each mean within 0.05 posterior standard deviations, the covariance within 5 %.

    Both tolerances grow by 4 standard errors; the covariance's comes from the bootstrap.
    """
    p = GaussianMixture(np.ones(len(means)), means.astype(np.float32), np.ones(len(means)))
    observation = Observation(jnp.array([y]), Row(jnp.array(a)), noise_std)

    def run(key):
        start_key, chain_key = jax.random.split(key)
        return sample_posterior(
            chain_key,
            p.score,
            jax.random.uniform(start_key, (2,)),
            geometric_sigmas(3.0, 0.1, 8),
            observation,
            step_size=0.2 * 0.1**2,
            steps_per_scale=steps_per_scale,
        )

    x = np.asarray(jax.jit(jax.vmap(run))(jax.random.split(KEY, 8192)), np.float64)
    mean, covariance = exact_posterior(means, np.asarray(a), y, noise_std)
    error = np.abs(x.mean(0) - mean) / np.sqrt(np.diag(covariance))
    assert error.max() < 0.05 + 4 / np.sqrt(8192)

    def relative(found):
        return np.linalg.norm(found - covariance) / np.linalg.norm(covariance)

    found = np.cov(x.T)
    rng = np.random.default_rng(0)
    resampled = [np.cov(x[rng.integers(0, 8192, 8192)].T) - found for _ in range(100)]
    standard_error = np.sqrt(np.mean(np.square(resampled), 0).sum()) / np.linalg.norm(covariance)
    assert relative(found) < 0.05 + 4 * standard_error
    assert standard_error < 0.03


@pytest.mark.slow
def test_annealed_langevin_samples_the_exact_posterior():
    assert_posterior(TWO, [1.0, 0.5], 1.0, 0.5, steps_per_scale=500)


@pytest.mark.slow
@pytest.mark.parametrize("means", [TWO, FOUR], ids=["two", "four"])
@pytest.mark.parametrize(
    ("a", "y", "noise_std"), [([1.0, 0.5], 1.0, 0.5), ([1.0, -1.0], 0.5, 1.0), ([0.6, 0.8], 0.2, 0.3)]
)
def test_annealed_langevin_samples_the_exact_posterior_of_every_observation(means, a, y, noise_std):
    assert_posterior(means, a, y, noise_std, steps_per_scale=2000)


@jax.debug_nans(False)  # the unknown pixels are NaN on purpose
@pytest.mark.parametrize("noise_std", [0.0, 0.3])
def test_unknown_pixels_are_never_read(noise_std):
    """Neither NaNs nor the pixels of a whole image are used there."""
    mask = jnp.arange(16).reshape(4, 4, 1) % 3 > 0
    x, image = jax.random.normal(KEY, (2, 4, 4, 1))
    clean = Observation(jnp.where(mask, image, 0.0), Mask(mask), noise_std)
    for unknown in (image, jnp.nan):
        observation = clean.replace(y=jnp.where(mask, image, unknown))
        np.testing.assert_allclose(observation.pull(x, 0.7), clean.pull(x, 0.7), rtol=1e-6)
        np.testing.assert_allclose(observation.project(x), jnp.where(mask, image, x), rtol=1e-5)


@jax.debug_nans(False)  # masks keep the NaNs they read
def test_operators_compute_block_means_luma_and_masked_pixels():
    image = jnp.arange(48.0).reshape(4, 4, 3)
    np.testing.assert_allclose(BlockAverage(2)(image)[0, 1, 2], np.mean([8, 11, 20, 23]))
    grey = jnp.broadcast_to(jnp.array(0.3), (4, 4, 3))
    np.testing.assert_allclose(Luma()(grey), 0.3, rtol=1e-6)
    assert Luma()(image).shape == (4, 4, 1)
    seen = Mask(jnp.arange(4)[:, None, None] < jnp.array([[[2, 2, 2]]]))(jnp.full((4, 1, 3), jnp.nan))
    assert np.isnan(seen[:2]).all()
    assert (seen[2:] == 0).all()
    with pytest.raises(ValueError, match="blocks of 3×3 pixels don't tile 4×4; accepted: a factor"):
        BlockAverage(3)(image)


def test_observing_everything_without_noise_keeps_the_observation():
    y = jnp.array([1.5, -0.5])
    observation = Observation(y, Identity(), 0.0)
    x = sample_posterior(KEY, MIXTURE.score, jnp.zeros(2), SIGMAS, observation, **OPTIONS)
    np.testing.assert_allclose(x, y, atol=4 * 0.05)
    np.testing.assert_allclose(observation.project(x), y, atol=1e-6)


def test_posterior_score_keeps_the_levels_of_its_network():
    observation = Observation(jnp.zeros(2), Identity(), 0.1)
    network = as_score_fn(NCSN(sigmas=(1.0, 0.5)), {})
    assert posterior_score(network, observation).sigmas == (1.0, 0.5)
    assert posterior_score(MIXTURE.score, observation).sigmas is None


def test_latent_interpolation_starts_and_ends_at_its_two_images():
    p = GaussianMixture([0.5, 0.5], [[-2.0, 0.0], [2.0, 0.0]], [0.5, 0.5])
    ends = jnp.array([[-2.5, 0.3], [1.8, -0.4]])
    sigmas = geometric_sigmas(20.0, 0.05, 5)
    row = interpolate_latents(p.score, *ends, sigmas, num_interpolations=21)
    np.testing.assert_allclose(row[jnp.array([0, -1])], ends, atol=0.01)
    # In between are likely points, and few of the valley between the modes.
    assert np.mean(np.abs(row[:, 0]) > 1.0) > 0.8


def test_slerp_keeps_the_norm_of_its_ends_along_the_arc():
    a, b = 3.0 * jax.random.normal(KEY, (2, 1000))
    arc = slerp(a, b, 9)
    np.testing.assert_allclose(arc[jnp.array([0, -1])], jnp.stack([a, b]), atol=1e-4)
    norms = np.linalg.norm(arc, axis=1)
    assert norms.min() > 0.95 * min(norms[0], norms[-1])
    np.testing.assert_allclose(slerp(a, 2.0 * a, 3)[1], 1.5 * a, rtol=1e-4)
