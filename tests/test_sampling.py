"""Sampling as the application runs it, from the smallest NCSN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from ncsn_jax import NCSN, annealed_langevin_dynamics, as_score_fn, data, sampling
from ncsn_jax.config import Sampling
from ncsn_jax.streams import stream

SHAPE = (8, 8, 1)
SIGMAS = (1.0, 0.5, 0.2)
SETTINGS = Sampling(batch_size=64, num_samples=10, step_size=1e-3, steps_per_scale=3)


@pytest.fixture(scope="module")
def score_fn():
    model = NCSN(sigmas=SIGMAS, num_filters=2)
    variables = model.init(jax.random.key(0), jnp.zeros((1, *SHAPE)), jnp.ones(1))
    return as_score_fn(model, variables)


def draw(score_fn, devices=4, first=0, **options):
    """The last states of a batch, on some of the four devices."""
    with pytest.MonkeyPatch.context() as patch:
        some = jax.devices()[:devices]
        patch.setattr(jax, "local_devices", lambda: some)
        patch.setattr(jax, "local_device_count", lambda: devices)
        sampling._pmapped_start.cache_clear()
        sampling._pmapped_level.cache_clear()
        *_, x = sampling.draw(score_fn, SHAPE, SIGMAS, SETTINGS.model_copy(update=options), first=first)
        sampling._pmapped_start.cache_clear()
        sampling._pmapped_level.cache_clear()
    assert x.shape[0] == devices
    return np.asarray(x).reshape(-1, *SHAPE)


@pytest.fixture(scope="module")
def samples(score_fn):
    return draw(score_fn)


@pytest.mark.parametrize("denoise", [False, True])
def test_the_levels_make_annealed_langevin_dynamics(score_fn, denoise):
    """Number 5 of the application's samples is the library's chain from the same key and start."""
    settings = SETTINGS.model_copy(update={"batch_size": 4, "denoise": denoise})
    *_, x = sampling.draw(score_fn, SHAPE, SIGMAS, settings, first=4)
    start_key, chain_key = jax.random.split(jax.random.fold_in(stream(0, "sampling"), 5))
    expected = annealed_langevin_dynamics(
        chain_key,
        score_fn,
        jax.random.uniform(start_key, SHAPE),
        jnp.asarray(SIGMAS),
        step_size=1e-3,
        steps_per_scale=3,
        denoise=denoise,
    )
    np.testing.assert_allclose(np.asarray(x)[1, 0], expected, atol=1e-4)


@pytest.mark.parametrize(("batch_size", "devices", "first"), [(1, 1, 11), (7, 1, 9), (64, 1, 0), (7, 4, 9)])
def test_a_sample_depends_on_its_key_alone(score_fn, samples, batch_size, devices, first):
    others = draw(score_fn, devices, first, batch_size=batch_size)
    assert len(others) == -(-batch_size // devices) * devices
    np.testing.assert_allclose(others, samples[first : first + len(others)], atol=1e-4)


def test_samples_differ_by_number_and_seed(score_fn, samples):
    assert len({image.tobytes() for image in samples}) == 64
    other = draw(score_fn, seed=1)
    assert np.abs(other - samples).max((1, 2, 3)).min() > 0.1


@pytest.mark.parametrize("name", ["rescale", "logit"])
def test_samples_are_drawn_where_the_network_is_trained_and_transformed_back(score_fn, name):
    transform = data.TRANSFORMS[name]
    settings = SETTINGS.model_copy(update={"batch_size": 4})
    first, *_, last = sampling.draw(score_fn, SHAPE, SIGMAS, settings, transform=transform)
    keys = jax.vmap(lambda i: jax.random.fold_in(stream(0, "sampling"), i))(jnp.arange(4))
    start_key, chain_key = jax.random.split(keys[1])
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


def test_files_hold_all_samples_and_show_the_first(score_fn, samples, tmp_path):
    settings = SETTINGS.model_copy(update={"batch_size": 4})
    sampling.write_samples(tmp_path / "samples", score_fn, SHAPE, SIGMAS, settings)
    written = np.load(tmp_path / "samples" / "samples.npy")
    assert written.dtype == np.float32
    np.testing.assert_allclose(written, samples[:10], atol=1e-4)
    grid = sampling.preview(score_fn, SHAPE, SIGMAS, settings, 10)
    with Image.open(tmp_path / "samples" / "grid.png") as image:
        # Other batches compile to other programs, whose rounding may move a pixel by a grey value.
        np.testing.assert_allclose(np.asarray(image, int), grid.squeeze(-1), atol=1)
    with Image.open(tmp_path / "samples" / "annealing.gif") as animation:
        assert animation.n_frames == 4
        assert animation.size == grid.shape[1::-1]
    assert len(list((tmp_path / "samples").iterdir())) == 3


def test_another_checkpoint_compiles_nothing():
    traces = []

    class Score(nn.Module):
        sigmas: tuple[float, ...] = (1.0, 0.5)

        @nn.compact
        def __call__(self, x, sigma):
            traces.append(sigma)
            return -self.param("slope", nn.initializers.ones, ()) * x

    variables = Score().init(jax.random.key(0), jnp.zeros((1, *SHAPE)), jnp.ones(1))
    traces.clear()
    list(sampling.draw(as_score_fn(Score(), variables), SHAPE, SIGMAS, SETTINGS))
    once = len(traces)
    doubled = jax.tree.map(lambda v: 2 * v, variables)
    list(sampling.draw(as_score_fn(Score(), doubled), SHAPE, SIGMAS, SETTINGS))
    assert once > 0
    assert len(traces) == once
