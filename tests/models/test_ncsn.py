"""What is NCSN's own; test_official.py holds it to the official network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import NCSN, as_score_fn
from ncsn_jax.interop.torch_names import params_from_torch
from ncsn_jax.losses import projected_score_matching
from ncsn_jax.models import ncsn

pytestmark = pytest.mark.usefixtures("strict")


def channels_last(images):
    return jnp.asarray(images.transpose(0, 2, 3, 1))


@pytest.fixture(scope="module")
def model(official):
    return NCSN(sigmas=tuple(official["sigmas"].tolist()), num_filters=8)


@pytest.fixture(scope="module")
def params(official):
    return params_from_torch({name: official[name] for name in official["param_names"]})


@pytest.fixture(scope="module")
def score_fn(model, params):
    return as_score_fn(model, {"params": params})


@pytest.fixture(scope="module")
def score(model, params):
    """The batched network as the official weights have it, compiled once."""
    return jax.jit(lambda x, sigma: model.apply({"params": params}, x, sigma))


def test_the_sliced_loss_is_the_official_one(official, score_fn):
    """Its `ssm` option: σ² times sliced score matching of the perturbed image, along N(0, I)."""
    x, noise, vectors = (channels_last(official[name]) for name in ("dsm_x", "dsm_noise", "ssm_vectors"))
    sigmas = jnp.asarray(official["sigmas"])[official["dsm_labels"]]

    def loss(x, noise, v, sigma):
        return sigma**2 * projected_score_matching(
            lambda x: score_fn(x, sigma), x + sigma * noise, v[None], variance_reduced=True
        )

    losses = jax.jit(jax.vmap(loss))(x, noise, vectors, sigmas)
    np.testing.assert_allclose(jnp.mean(losses), official["ssm_loss"], rtol=2e-5)


def test_sigma_is_looked_up_as_the_nearest_level_in_its_logarithm(official, score):
    sigmas = official["sigmas"]
    x = channels_last(official["x"])
    near = score(x, sigmas[official["y"]] * np.array([1.2, 0.8, 1.25], np.float32))
    np.testing.assert_array_equal(near, score(x, sigmas[official["y"]]))
    # The geometric mean of two levels parts them.
    middle = np.sqrt(sigmas[3] * sigmas[4])
    levels = [sigmas[3], sigmas[4], sigmas[3]]
    beside = np.array([middle * 1.01, middle * 0.99, middle * 1.01], np.float32)
    np.testing.assert_array_equal(score(x, beside), score(x, np.array(levels)))


def test_the_single_example_view_is_the_batched_network(official, score_fn, score):
    x, sigma = channels_last(official["x"]), official["sigmas"][official["y"]]
    out = jax.jit(jax.vmap(score_fn))(x, sigma)
    expected = score(x, sigma)
    np.testing.assert_allclose(out, expected, atol=2e-5 * float(np.abs(expected).max()))


def test_other_variables_compile_nothing(model, params):
    traces = []

    @jax.jit
    def evaluate(score_fn, x):
        traces.append(1)
        return score_fn(x, 1.0)

    x = jnp.zeros((8, 8, 1))
    first = evaluate(as_score_fn(model, {"params": params}), x)
    zero = jax.tree.map(jnp.zeros_like, params)
    second = evaluate(as_score_fn(model, {"params": zero}), x)
    assert len(traces) == 1
    assert np.any(first != second)


def test_odd_images_are_refused():
    model = NCSN((1.0, 0.1), num_filters=2)
    with pytest.raises(ValueError, match="even there, found 27×28"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 27, 28, 1)), jnp.ones(1))


def test_vectors_are_refused(unchecked):
    model = unchecked(ncsn).NCSN(sigmas=(1.0, 0.1))
    with pytest.raises(ValueError, match=r"network takes images, .* found an x of shape \(1, 2\)"):
        model.init(jax.random.key(0), jnp.zeros((1, 2)), jnp.ones(1))
