"""Sampling, inpainting and interpolation against traces of the official code, without its noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import annealed_langevin_dynamics, as_score_fn, inpaint, interpolate
from ncsn_jax.interop import from_torch

pytestmark = pytest.mark.usefixtures("optimized")

KEY = jax.random.key(0)


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


def test_annealed_langevin_dynamics_equals_the_official_trace(trace):
    numbers, score_fn, options = trace("trace_ncsn_28x1_langevin_zero.npz")
    sigmas = jnp.asarray(numbers["sigmas_float64"], jnp.float32)

    @jax.jit
    @jax.vmap
    def run(x):
        return annealed_langevin_dynamics(KEY, score_fn, x, sigmas, **options)

    assert_final(run(channels_last(numbers["x0"])), numbers)


def test_inpainting_equals_the_official_trace(trace):
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


def test_interpolation_equals_the_official_trace(trace):
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
