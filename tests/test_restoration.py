"""Restoration against the official code's traces, and against what it promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import (
    GaussianMixture,
    annealed_langevin_dynamics,
    as_score_fn,
    geometric_sigmas,
    inpaint,
    interpolate,
    restoration,
)
from ncsn_jax.interop import from_torch

KEY = jax.random.key(0)
MIXTURE = GaussianMixture(jnp.array([0.5, 0.5]), jnp.array([[-2.0, -2.0], [2.0, 2.0]]), jnp.array([0.3, 0.3]))
SIGMAS = geometric_sigmas(4.0, 0.05, 12)
OPTIONS = dict(step_size=1e-3, steps_per_scale=50)


@pytest.fixture(scope="module")
def trace(fixture):
    """The numbers of a trace without noise, its network, and its settings."""

    def load(name):
        numbers = fixture(name)
        network = fixture(str(numbers["weights"]))
        score_fn = as_score_fn(*from_torch({name: network[name] for name in network["state_dict_names"]}))
        options = dict(
            step_size=float(numbers["step_lr"]),
            steps_per_scale=int(numbers["n_steps_each"]),
            temperature=0.0,
        )
        return numbers, score_fn, options

    return load


def channels_last(images):
    return jnp.asarray(np.moveaxis(images, -3, -1))


def assert_final(x, numbers):
    expected = channels_last(numbers["x_final"])
    error = np.abs(x - expected).max((1, 2, 3)) / np.abs(expected).max((1, 2, 3))
    assert error.max() < 2e-5


def test_annealed_langevin_dynamics_is_the_official_one(trace):
    numbers, score_fn, options = trace("trace_ncsn_28x1_langevin_zero.npz")
    sigmas = jnp.asarray(numbers["sigmas_float64"], jnp.float32)

    @jax.jit
    @jax.vmap
    def run(x):
        return annealed_langevin_dynamics(KEY, score_fn, x, sigmas, **options)

    assert_final(run(channels_last(numbers["x0"])), numbers)


def test_inpainting_is_the_official_one(trace):
    numbers, score_fn, options = trace("trace_ncsnv2_32x3_L12_inpaint_zero.npz")
    left_half = jnp.broadcast_to(jnp.arange(32)[:, None] < 16, (32, 32, 3))

    @jax.jit
    @jax.vmap
    def run(x, observation):
        return inpaint(
            KEY, score_fn, x, jnp.asarray(numbers["sigmas"]), observation, mask=left_half, **options
        )

    x0, observations = channels_last(numbers["x0"]), channels_last(numbers["refer_image"])
    observations = jnp.repeat(observations, x0.shape[1], axis=0)
    assert_final(run(x0.reshape(observations.shape), observations), numbers)


def test_interpolation_is_the_official_one(trace):
    numbers, score_fn, options = trace("trace_ncsnv2_32x3_L12_interp_zero.npz")
    count = int(numbers["n_interpolations"])

    @jax.jit
    @jax.vmap
    def run(x):
        sigmas = jnp.asarray(numbers["sigmas"])
        return interpolate(KEY, score_fn, x, sigmas, num_interpolations=count, **options)

    rows = run(channels_last(numbers["x0"]))
    assert rows.shape[1] == count
    assert_final(rows.reshape(-1, *rows.shape[2:]), numbers)


def test_inpainting_completes_with_what_fits():
    """One coordinate of a point near one of two modes is known: the other follows."""
    observation, mask = jnp.array([2.0, jnp.nan]), jnp.array([True, False])

    def run(key):
        return inpaint(key, MIXTURE.score, jnp.zeros(2), SIGMAS, observation, mask=mask, **OPTIONS)

    x = jax.jit(jax.vmap(run))(jax.random.split(KEY, 500))
    assert np.isfinite(x).all()
    np.testing.assert_allclose(x[:, 0], 2.0, atol=0.3)  # moved by the last update alone
    assert np.mean(x[:, 1] > 0) > 0.99
    # 0.3 within 10 % (3 standard errors of 500 samples), and the bias of the last step size.
    np.testing.assert_allclose(np.std(x[x[:, 1] > 0, 1]), 0.3, rtol=0.15)


def test_inpainting_nothing_is_sampling_and_everything_keeps_it():
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


def test_interpolations_are_samples_and_neighbours():
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


def test_the_ends_of_a_row_do_not_depend_on_its_length():
    def run(count):
        return interpolate(
            KEY, MIXTURE.score, jnp.zeros(2), SIGMAS, num_interpolations=count, **OPTIONS, denoise=True
        )

    long, short = run(7), run(3)
    np.testing.assert_allclose(long[0], short[0], rtol=1e-4)
    np.testing.assert_allclose(long[3], short[1], rtol=1e-3)


def test_what_cannot_be_restored_is_refused(unchecked):
    x = jnp.zeros((4, 4, 1))
    with pytest.raises(ValueError, match=r"one shape, found \(4, 4, 1\), \(4, 4, 1\) and \(4, 4\)"):
        unchecked(restoration).inpaint(
            KEY, MIXTURE.score, x, SIGMAS, x, mask=jnp.zeros((4, 4), bool), **OPTIONS
        )
    with pytest.raises(ValueError, match="num_interpolations must be at least 1, found 0"):
        interpolate(KEY, MIXTURE.score, jnp.zeros(2), SIGMAS, num_interpolations=0, **OPTIONS)
    with pytest.raises(ValueError, match=r"steps_per_scale at least 0, found the shape \(12,\) and -1"):
        annealed_langevin_dynamics(
            KEY, MIXTURE.score, jnp.zeros(2), SIGMAS, step_size=0.1, steps_per_scale=-1
        )


def test_levels_may_be_a_tuple():
    x = jnp.zeros(2)
    rows = [
        annealed_langevin_dynamics(KEY, MIXTURE.score, x, sigmas, **OPTIONS)
        for sigmas in (SIGMAS, tuple(SIGMAS.tolist()))
    ]
    np.testing.assert_allclose(*rows, rtol=1e-5)
