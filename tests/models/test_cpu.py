"""Operations in the forms for CPUs equal their plain forms."""

import jax
import jax.numpy as jnp
import numpy as np

from ncsn_jax.models.cpu import computed_once, convolution, level_rows


def test_level_rows_are_looked_up_exactly():
    table = jax.random.normal(jax.random.key(0), (7, 6))
    level = jnp.array([6, 0, 3])
    first, second = level_rows(table, level, parts=2)
    np.testing.assert_array_equal(first, table[level][:, None, None, :3])
    np.testing.assert_array_equal(second, table[level][:, None, None, 3:])


def test_a_convolution_and_a_value_computed_once_are_unchanged():
    x = jax.random.normal(jax.random.key(1), (2, 5, 6, 3))
    kernel = jax.random.normal(jax.random.key(2), (3, 3, 3, 4))
    dimensions = ("NHWC", "HWIO", "NHWC")
    plain = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)
    found = convolution(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)
    np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(jax.jit(computed_once)(x), x)
