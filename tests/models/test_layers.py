"""The blocks against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax.models.layers import (
    EPSILON,
    ConditionalInstanceNormPlus,
    MeanPoolConv,
    average_pool5,
    conv,
    inverse_deviation,
    resize_bilinear,
)


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (2, 6, 9, 3))


def test_average_pool_counts_the_padding(x):
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
    np.testing.assert_allclose(average_pool5(x), windows.sum((-2, -1)) / 25, atol=1e-6)


@pytest.mark.parametrize("size", [(12, 18), (6, 9), (4, 5), (11, 9), (1, 1)])
def test_bilinear_resize_aligns_the_corners(x, size):
    height, width = size
    rows = np.linspace(0, 5, height) if height > 1 else np.zeros(1)
    columns = np.linspace(0, 8, width) if width > 1 else np.zeros(1)

    def plane(p):
        by_row = np.stack([np.interp(rows, np.arange(6), column) for column in p.T], axis=1)
        return np.stack([np.interp(columns, np.arange(9), row) for row in by_row])

    expected = np.stack([[plane(p) for p in np.moveaxis(image, -1, 0)] for image in np.asarray(x)])
    np.testing.assert_allclose(resize_bilinear(x, height, width), np.moveaxis(expected, 1, -1), atol=1e-5)


def test_bilinear_resize_spreads_a_single_pixel():
    x = jnp.array([2.0, -3.0]).reshape(1, 1, 1, 2)
    np.testing.assert_allclose(resize_bilinear(x, 4, 4), np.broadcast_to(x, (1, 4, 4, 2)))


@pytest.mark.parametrize(("axes", "ddof"), [((1, 2), 0), ((1, 2), 1), ((3,), 1)])
def test_inverse_deviation_has_the_first_two_derivatives_of_its_formula(x, axes, ddof):
    """The first two: losses of score matching differentiate the network twice."""

    def formula(x, axes, ddof):
        return jax.lax.rsqrt(jnp.var(x, axis=axes, keepdims=True, ddof=ddof) + EPSILON)

    direction = jax.random.normal(jax.random.key(1), x.shape)

    def derivatives(function):
        def total(x):
            return jnp.sum(jnp.sin(jnp.arange(x.size).reshape(x.shape)) * x * function(x, axes, ddof))

        def gradient(x):
            return jax.grad(total)(x)

        return gradient(x), *jax.jvp(gradient, (x,), (direction,))

    np.testing.assert_array_equal(inverse_deviation(x, axes, ddof), formula(x, axes, ddof))
    for found, expected in zip(derivatives(inverse_deviation), derivatives(formula), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_instance_norm_plus_equals_its_formula(x):
    norm = ConditionalInstanceNormPlus(num_scales=4)
    level = jnp.array([3, 1])
    table = jax.random.normal(jax.random.key(1), (4, 9))
    out = norm.apply({"params": {"embed": {"embedding": table}}}, x, level)
    x = np.asarray(x, np.float64)
    for n in range(2):
        gamma, alpha, beta = np.asarray(table)[level[n]].reshape(3, 3)
        mean, variance = x[n].mean((0, 1)), x[n].var((0, 1))
        shift = (mean - mean.mean()) / np.sqrt(mean.var(ddof=1) + 1e-5)
        expected = gamma * ((x[n] - mean) / np.sqrt(variance + 1e-5) + alpha * shift) + beta
        np.testing.assert_allclose(out[n], expected, atol=1e-5)


def test_instance_norm_plus_starts_near_the_identity(x):
    params = ConditionalInstanceNormPlus(num_scales=50).init(jax.random.key(2), x, jnp.zeros(2, int))
    table = params["params"]["embed"]["embedding"]
    assert np.all(table[:, 6:] == 0)
    np.testing.assert_allclose(np.mean(table[:, :6]), 1, atol=4 * 0.02 / np.sqrt(300))
    np.testing.assert_allclose(np.std(table[:, :6]), 0.02, rtol=0.2)


def test_convolutions_are_initialised_uniformly_as_in_torch(x):
    from flax import linen as nn

    class Module(nn.Module):
        @nn.compact
        def __call__(self, x):
            return conv(x, 64, dilation=2, name="conv")

    module = Module()
    out, variables = module.init_with_output(jax.random.key(3), x)
    assert out.shape == (2, 6, 9, 64)
    bound = 1 / np.sqrt(3 * 9)
    for values in jax.tree.leaves(variables):
        assert np.abs(values).max() <= bound
        assert np.abs(values).max() > 0.9 * bound
        assert abs(np.mean(values)) < 4 * bound / np.sqrt(3 * values.size)


def test_mean_pooling_refuses_odd_sizes(x):
    with pytest.raises(ValueError, match="even there, found 6×9"):
        MeanPoolConv(4, 3).init(jax.random.key(0), x)
