"""NCSN alone; test_official.py compares it with the official network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import NCSN, as_score_fn
from ncsn_jax.interop.torch_names import REFINENET, params_from_torch
from ncsn_jax.models import ncsn


def channels_last(images):
    return jnp.asarray(images.transpose(0, 2, 3, 1))


@pytest.fixture(scope="module")
def model(official):
    return NCSN(sigmas=tuple(official["sigmas"].tolist()), num_filters=8)


@pytest.fixture(scope="module")
def params(official):
    return params_from_torch({name: official[name] for name in official["param_names"]}, REFINENET)


@pytest.fixture(scope="module")
def score_fn(model, params):
    return as_score_fn(model, {"params": params})


@pytest.fixture(scope="module")
def score(model, params):
    """The batched network with the official weights, compiled once."""
    return jax.jit(lambda x, sigma: model.apply({"params": params}, x, sigma))


@pytest.mark.slow
def test_ncsn_looks_up_sigma_as_the_nearest_level_in_log_scale(official, score):
    sigmas = official["sigmas"]
    x = channels_last(official["x"])
    near = score(x, sigmas[official["y"]] * np.array([1.2, 0.8, 1.25], np.float32))
    np.testing.assert_array_equal(near, score(x, sigmas[official["y"]]))
    # The geometric mean of two levels parts them.
    middle = np.sqrt(sigmas[3] * sigmas[4])
    levels = [sigmas[3], sigmas[4], sigmas[3]]
    beside = np.array([middle * 1.01, middle * 0.99, middle * 1.01], np.float32)
    np.testing.assert_array_equal(score(x, beside), score(x, np.array(levels)))


@pytest.mark.slow
def test_single_example_score_equals_the_batched_network(official, score_fn, score):
    x, sigma = channels_last(official["x"]), official["sigmas"][official["y"]]
    out = jax.jit(jax.vmap(score_fn))(x, sigma)
    expected = score(x, sigma)
    np.testing.assert_allclose(out, expected, atol=2e-5 * float(np.abs(expected).max()))


def test_ncsn_refuses_images_of_odd_size():
    model = NCSN((1.0, 0.1), num_filters=2)
    with pytest.raises(ValueError, match="even there, found 27×28"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 27, 28, 1)), jnp.ones(1))


def test_ncsn_refuses_vectors(unchecked):
    model = unchecked(ncsn).NCSN(sigmas=(1.0, 0.1))
    with pytest.raises(ValueError, match=r"network takes images, .* found an x of shape \(1, 2\)"):
        model.init(jax.random.key(0), jnp.zeros((1, 2)), jnp.ones(1))
