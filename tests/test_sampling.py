"""Sampling as the application runs it: every method, step by step, and to files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from ncsn_jax import annealed_langevin_dynamics, as_score_fn, data, sampling
from ncsn_jax.config import Sampling
from ncsn_jax.noise import karras_sigmas
from ncsn_jax.plan import plan
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.runtime.streams import stream
from ncsn_jax.samplers import (
    consistent_annealed_sampling,
    euler_maruyama,
    heun,
    predictor_corrector,
    probability_flow,
)

SHAPE = (8, 8, 1)
SIGMAS = (1.0, 0.5, 0.2)
SETTINGS = Sampling(batch_size=64, num_samples=10, step_size=1e-3, steps_per_scale=3, rtol=1e-5, atol=1e-5)
METHODS = ["annealed", "consistent", "pc", "ode", "heun"]


class TinyScore(nn.Module):
    """A smooth network for any σ, in one convolution."""

    @nn.compact
    def __call__(self, x, sigma):
        return -nn.Conv(1, (3, 3))(nn.tanh(x)) / jnp.square(1.0 + sigma)[:, None, None, None]


@pytest.fixture(scope="module")
def score_fn():
    variables = TinyScore().init(jax.random.key(0), jnp.zeros((1, *SHAPE)), jnp.ones(1))
    return as_score_fn(TinyScore(), variables)


def draw(score_fn, batch_size=64, first=0, **options):
    """The last states of a batch."""
    (numbers,) = sampling.batches(batch_size, batch_size)
    settings = SETTINGS.model_copy(update=options)
    *_, x = sampling.draw(score_fn, SHAPE, SIGMAS, settings, first + numbers)
    return sampling.rows(x)


def start(number):
    """The keys of a sample's start and of its chain."""
    return jax.random.split(jax.random.fold_in(stream(0, "sampling"), number))


def noisy_start(key):
    uniform_key, noise_key = jax.random.split(key)
    return jax.random.uniform(uniform_key, SHAPE) + jax.random.normal(noise_key, SHAPE)


LIBRARY = {
    "annealed": lambda key, score_fn, x: annealed_langevin_dynamics(
        key, score_fn, x, SIGMAS, step_size=1e-3, steps_per_scale=3, denoise=True
    ),
    "consistent": lambda key, score_fn, x: consistent_annealed_sampling(
        key, score_fn, x, SIGMAS, eta=0.7, temperature=0.5, denoise=True
    ),
    "pc": lambda key, score_fn, x: predictor_corrector(
        key,
        score_fn,
        x,
        SIGMAS,
        predictor=euler_maruyama,
        corrector_steps=2,
        snr=0.1,
        temperature=0.5,
        denoise=True,
    ),
    "ode": lambda key, score_fn, x: probability_flow(score_fn, x, 1.0, 0.2, rtol=1e-5, atol=1e-5),
    "heun": lambda key, score_fn, x: heun(
        key,
        score_fn,
        x,
        karras_sigmas(1.0, 0.2, 5, rho=3.0),
        s_churn=1.0,
        s_min=0.3,
        s_max=0.9,
        s_noise=1.1,
    ),
}
OPTIONS = {
    "annealed": dict(denoise=True),
    "consistent": dict(eta=0.7, temperature=0.5, denoise=True),
    "pc": dict(predictor="euler_maruyama", corrector_steps=2, snr=0.1, temperature=0.5, denoise=True),
    "ode": dict(num_levels=4),
    "heun": dict(num_levels=5, rho=3.0, s_churn=1.0, s_min=0.3, s_max=0.9, s_noise=1.1),
}


@pytest.mark.parametrize("method", METHODS)
def test_application_samples_equal_the_librarys_sampler(score_fn, method):
    """Number 5 of the application's samples is the library's chain from the same key and start."""
    found = draw(score_fn, 4, first=4, method=method, **OPTIONS[method])[1]
    start_key, chain_key = start(5)
    x = jax.random.uniform(start_key, SHAPE) if method == "annealed" else noisy_start(start_key)
    np.testing.assert_allclose(found, LIBRARY[method](chain_key, score_fn, x), atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_sample_depends_on_its_key_and_not_on_batch_or_devices(score_fn, method, local_devices):
    samples = draw(score_fn, method=method, s_churn=1.0)
    assert len({image.tobytes() for image in samples}) == 64
    for batch_size, devices, first in [(1, 1, 11), (7, 4, 9)]:
        local_devices(devices)
        others = draw(score_fn, batch_size, first, method=method, s_churn=1.0)
        assert len(others) == -(-batch_size // devices) * devices
        np.testing.assert_allclose(others, samples[first : first + len(others)], atol=1e-4)


def test_samples_differ_by_seed(score_fn):
    samples, other = draw(score_fn), draw(score_fn, seed=1)
    assert np.abs(other - samples).max((1, 2, 3)).min() > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_denoise_applies_tweedies_formula_to_methods_that_end_noisy(score_fn, method):
    """The denoised result is Tweedie's formula of the other; consistent and heun end without noise anyway."""
    plain, denoised = (draw(score_fn, 4, method=method, denoise=d) for d in (False, True))
    if method not in ("consistent", "heun"):
        mean = jax.vmap(lambda x: x + 0.2**2 * score_fn(x, 0.2))(plain)
        np.testing.assert_allclose(denoised, mean, atol=1e-5)
        assert np.abs(denoised - plain).max() > 1e-3
    else:
        np.testing.assert_array_equal(denoised, plain)


@pytest.mark.parametrize("name", ["rescale", "logit"])
def test_samples_start_transformed_for_the_network_and_are_transformed_back(score_fn, name):
    transform = data.TRANSFORMS[name]
    (numbers,) = sampling.batches(4, 4)
    first, *_, last = sampling.draw(score_fn, SHAPE, SIGMAS, SETTINGS, numbers, transform=transform)
    start_key, chain_key = start(1)
    uniform = jax.random.uniform(start_key, SHAPE)
    np.testing.assert_allclose(np.asarray(first)[1, 0], uniform, atol=1e-5)
    x = annealed_langevin_dynamics(
        chain_key,
        score_fn,
        transform.forward(uniform),
        jnp.asarray(SIGMAS),
        step_size=1e-3,
        steps_per_scale=3,
    )
    np.testing.assert_allclose(np.asarray(last)[1, 0], transform.inverse(x), atol=1e-4)


def test_sample_files_hold_all_samples_and_pictures_show_the_first(score_fn, tmp_path):
    settings = SETTINGS.model_copy(update={"batch_size": 4})
    sampling.write_samples(tmp_path / "samples", score_fn, SHAPE, SIGMAS, settings)
    written = np.load(tmp_path / "samples" / "samples.npy")
    assert written.dtype == np.float32
    np.testing.assert_allclose(written, draw(score_fn)[:10], atol=1e-4)
    grid = sampling.preview(score_fn, SHAPE, SIGMAS, settings, 10)
    with Image.open(tmp_path / "samples" / "grid.png") as image:
        # Other batches compile to other programs, whose rounding may move a pixel by a grey value.
        np.testing.assert_allclose(np.asarray(image, int), grid.squeeze(-1), atol=1)
    with Image.open(tmp_path / "samples" / "annealing.gif") as animation:
        assert animation.n_frames == 4
        assert animation.size == grid.shape[1::-1]
    assert len(list((tmp_path / "samples").iterdir())) == 4


def test_batches_are_written_one_by_one_and_only_few_frames_are_kept(tmp_path):
    """A sampler of 1,000 steps and 3 batches; every state encodes its step and its sample."""
    written = []

    def run(numbers):
        for step in range(1001):
            yield jnp.asarray(numbers, jnp.float32)[..., None] + 1000.0 * step
        partial = np.load(tmp_path / "x.npy.partial", mmap_mode="r")
        written.append((partial != 0).sum())

    numbers = sampling.batches(10, 4)
    shown = np.array([0, 1, 4, 5, 8, 11])
    written_file = sampling.write_batches(
        tmp_path / "x.npy", {}, run, numbers, num_steps=1000, counts=(5, 2), shape=(1,), shown=shown
    )
    frames = written_file.frames
    assert written == [4, 8, 10]
    last = 1_000_000.0 + np.arange(10)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), last.reshape(5, 2, 1))
    assert len(frames) <= sampling.MAX_FRAMES + 1
    np.testing.assert_array_equal(frames[-1][:, 0], last[[0, 1, 4, 5, 8]])
    # Frames keep these samples only, and are no views of a batch.
    assert all(frame.shape == (5, 1) and frame.base is None for frame in frames)


@pytest.mark.parametrize("options", [dict(method="ode", rtol=1e-20, atol=1e-20), dict(step_size=1e38)])
def test_samples_that_are_not_finite_are_reported_and_still_written(score_fn, tmp_path, options):
    settings = SETTINGS.model_copy(update=dict(steps_per_scale=30) | options)
    with pytest.raises(
        UserError,
        match=r"samples\.npy: 10 of 10 samples are not finite; make the steps of config\.sampling smaller",
    ):
        sampling.write_samples(tmp_path, score_fn, SHAPE, SIGMAS, settings)
    names = ["annealing.gif", "grid.png", "samples.npy", "settings.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_replacing_samples_logs_how_their_settings_differ(score_fn, tmp_path, caplog):
    def write(**options):
        caplog.clear()
        settings = SETTINGS.model_copy(update=options)
        sampling.write_samples(tmp_path, score_fn, SHAPE, SIGMAS, settings)
        return caplog.messages

    assert write() == []
    assert write() == [
        f"{tmp_path}: replacing 10 samples drawn with the same settings; --out=NAME keeps both"
    ]
    (message,) = write(num_samples=1, seed=3)
    assert "replacing 10 samples drawn with sampling.num_samples=10, sampling.seed=0; --out" in message
    (tmp_path / "settings.json").unlink()
    (message,) = write()
    assert "replacing 1 samples drawn with unknown settings" in message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            dict(method="consistent", eta=0.1),
            r"config\.sampling\.method='consistent': eta=0\.1: .* 0\.[69]\d* to 1",
        ),
        (dict(method="heun", rho=1e-3), r"config\.sampling\.method='heun': "),
    ],
)
def test_sampling_refuses_impossible_levels_before_writing(settings, message, score_fn, tmp_path):
    for sigmas in (SIGMAS, (50.0, *SIGMAS)):
        with pytest.raises(UserError, match=message):
            sampling.write_samples(tmp_path / "samples", score_fn, SHAPE, sigmas, Sampling(**settings))
    assert not (tmp_path / "samples").exists()


def test_sampling_another_checkpoint_or_number_of_samples_compiles_nothing():
    traces = []

    class Score(nn.Module):
        @nn.compact
        def __call__(self, x, sigma):
            traces.append(sigma)
            return -self.param("slope", nn.initializers.ones, ()) * x

    variables = Score().init(jax.random.key(0), jnp.zeros((1, *SHAPE)), jnp.ones(1))
    traces.clear()
    (numbers,) = sampling.batches(64, 64)
    list(sampling.draw(as_score_fn(Score(), variables), SHAPE, SIGMAS, SETTINGS, numbers))
    once = len(traces)
    doubled = jax.tree.map(lambda v: 2 * v, variables)
    more = SETTINGS.model_copy(update={"num_samples": 11, "seed": 2})
    list(sampling.draw(as_score_fn(Score(), doubled), SHAPE, SIGMAS, more, numbers))
    assert once > 0
    assert len(traces) == once


def test_sampling_levels_are_the_models_or_as_many_as_are_asked_for():
    def levels(**settings):
        return plan(Sampling(**settings), SIGMAS).levels

    assert levels(method="annealed", num_levels=7) == (*SIGMAS, 0.0)
    assert levels(method="consistent") == (*SIGMAS, 0.0)
    assert levels(method="pc") == SIGMAS
    assert len(levels(method="ode", num_levels=7)) == 7
    found = levels(method="heun", num_levels=4, rho=2.0)
    np.testing.assert_allclose(np.diff(np.sqrt(found[:4])), (np.sqrt(0.2) - 1) / 3, rtol=1e-5)
    assert found[4:] == (0.0,)


def test_damaged_earlier_samples_do_not_stop_new_ones(score_fn, tmp_path, caplog):
    for samples, settings in ((b"", "["), (b"PK\x03\x04junk", "[]"), (b"\x93NUMPY", "[" * 100_000)):
        (tmp_path / "samples.npy").write_bytes(samples)
        (tmp_path / "settings.json").write_text(settings)
        sampling.write_samples(tmp_path, score_fn, SHAPE, SIGMAS, SETTINGS)
        assert len(np.load(tmp_path / "samples.npy")) == 10
