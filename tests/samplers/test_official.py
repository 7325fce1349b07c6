"""Sampling, inpainting and interpolation against traces of the official code, without its noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import annealed_langevin_dynamics, as_score_fn, geometric_sigmas, inpaint, interpolate
from ncsn_jax.interop import from_torch
from ncsn_jax.samplers import langevin_update
from ncsn_jax.training.objective import loss_scale

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


@pytest.mark.parametrize("name", ["cifar", "church", "ffhq1024"])
def test_levels_and_their_differences_equal_score_sde(fixture, name):
    numbers = {key.removeprefix(f"sde.{name}."): value for key, value in fixture("score_sde/ops.npz").items()}
    smallest, largest, count = numbers["sigma_min_max_N"].tolist()
    levels = np.asarray(geometric_sigmas(largest, smallest, int(count)), np.float64)
    np.testing.assert_allclose(levels, numbers["buffer_sigmas_descending"], rtol=1e-5)
    number = np.round((1 - numbers["grid_t"]) * (count - 1)).astype(int)
    removed = levels**2 - np.append(levels[1:], 0.0) ** 2  # by reverse diffusion, and at last by denoising
    np.testing.assert_allclose(np.sqrt(removed[number]), numbers["grid_G"], rtol=2e-3)
    weight = loss_scale((largest, smallest), 1, reduce_mean=False, likelihood_weighting=True)
    np.testing.assert_allclose(numbers["diffusion"] ** 2, weight * numbers["std"] ** 2, rtol=1e-5)


@pytest.mark.slow
def test_predictor_and_corrector_steps_equal_the_trace_of_score_sde(fixture):
    """With the recorded noise and step sizes, which the release takes from norms over the batch."""
    numbers = fixture("score_sde/pc_sampler_trace.npz")
    network = fixture(f"score_sde/{numbers['network_file']}")
    score_fn = as_score_fn(*from_torch({name: network[f"sd.{name}"] for name in network["state_dict_names"]}))
    score = jax.jit(jax.vmap(score_fn, (0, None)))
    x = channels_last(numbers["x_init"])
    np.testing.assert_allclose(
        x, channels_last(numbers["noise_prior"]) * numbers["sigma_min_max"][1], rtol=1e-6
    )
    for i in range(int(numbers["N"])):
        sigma = jnp.asarray(numbers["sigma_label"][i])
        noise, step_size = (
            channels_last(numbers["noise_corrector"][i, 0]),
            numbers["corrector_step_size_last"][i],
        )
        s = score(x, sigma)
        ratio = (
            jnp.linalg.norm(noise.reshape(2, -1), axis=1).mean()
            / jnp.linalg.norm(s.reshape(2, -1), axis=1).mean()
        )
        np.testing.assert_allclose(2 * (numbers["snr"] * ratio) ** 2, step_size, rtol=1e-3)
        x = langevin_update(noise, s, x, step_size)
        assert_near(x, numbers["x_after_corrector"][i])
        noise, g = channels_last(numbers["noise_predictor"][i]), numbers["G"][i]
        mean = x + g**2 * score(x, sigma)
        assert_near(mean, numbers["x_mean_predictor"][i])
        # Reverse diffusion removes the variance g² = σᵢ² − σᵢ₊₁², and adds as much noise.
        x = mean + g * noise
        assert_near(x, numbers["x_after_predictor"][i])
    assert_near(mean, numbers["sample"])


def assert_near(x, expected):
    expected = channels_last(expected)
    assert np.max(np.abs(x - expected).max((1, 2, 3)) / np.abs(expected).max((1, 2, 3))) < 2e-4
