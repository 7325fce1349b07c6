import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import MLP, as_score_fn
from ncsn_jax.models import mlp


@pytest.fixture(scope="module")
def model():
    return MLP(num_features=16, num_layers=2)


@pytest.fixture(scope="module")
def variables(model):
    return model.init(jax.random.key(0), jnp.zeros((1, 3)), jnp.ones(1))


def test_mlp_takes_batches_of_vectors_at_any_sigma(model, variables):
    x = jax.random.normal(jax.random.key(1), (5, 3))
    sigma = jnp.array([1e-2, 0.3, 1.0, 7.7, 50.0])
    out = model.apply(variables, x, sigma)
    assert out.shape == (5, 3)
    assert np.isfinite(out).all()
    score_fn = as_score_fn(model, variables)
    np.testing.assert_allclose(jax.vmap(score_fn)(x, sigma), out, rtol=1e-5)
    nearby = jax.vmap(score_fn)(x, sigma * 1.001)
    assert 0 < np.abs(nearby / out - 1).max() < 0.05


def test_mlp_fields_set_the_shapes_of_its_layers(variables):
    shapes = jax.tree.map(jnp.shape, variables["params"])
    kernels = [shapes[f"Dense_{i}"]["kernel"] for i in range(3)]
    assert kernels == [(4, 16), (16, 16), (16, 3)]


def test_mlp_output_grows_as_sigma_shrinks(model, variables):
    """It is divided by σ; before the division it is of order one at every level."""
    x = jnp.zeros((2, 3))
    out = model.apply(variables, x, jnp.array([1e-4, 1e-3]))
    np.testing.assert_allclose(np.abs(out[0]).max() / np.abs(out[1]).max(), 10, rtol=0.5)


def test_mlp_refuses_images(unchecked):
    model = unchecked(mlp).MLP()
    with pytest.raises(ValueError, match=r"MLP takes vectors, .* found an x of shape \(1, 8, 8, 1\)"):
        model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.ones(1))
