"""The benchmark of convolutions: it finds the convolutions of a gradient and computes the same results."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.convolutions import compiled, convolutions


@jax.jit
def convolve(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def test_convolutions_of_a_gradient_are_found_below_jit():
    x, kernel = jnp.ones((2, 5, 5, 3)), jnp.ones((3, 3, 3, 4))
    gradient = jax.grad(lambda x, kernel: jnp.sum(convolve(x, kernel) ** 2), (0, 1))
    found = [equation.outvars[0].aval.shape for equation in convolutions(jax.make_jaxpr(gradient)(x, kernel))]
    assert sorted(found) == sorted([(2, 5, 5, 4), x.shape, kernel.shape])


def test_an_extracted_convolution_computes_the_original_result():
    x, kernel = jnp.ones((2, 5, 5, 3)), jnp.ones((3, 3, 3, 4))
    (equation,) = convolutions(jax.make_jaxpr(convolve)(x, kernel))
    np.testing.assert_array_equal(compiled(equation, {})(), convolve(x, kernel))
