"""Resampling against the release's numbers, in float64 stored as float32, and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ncsn_jax.models.resampling import down, down_conv, fir, kernel_2d, up, up_conv

OPERATORS = "score_sde/ops.npz"
KERNELS = {
    "1331": (1.0, 3.0, 3.0, 1.0),
    "asym": (1.0, 2.0, 3.0, 5.0),
    "121": (1.0, 2.0, 1.0),
}


def channels_last(images):
    return jnp.asarray(images.transpose(0, 2, 3, 1))


@pytest.fixture
def numbers(fixture):
    return fixture(OPERATORS)


@pytest.mark.parametrize("name", [*KERNELS, "k2d"])
def test_filters_equal_the_release(numbers, name):
    if name == "k2d":
        kernel = tuple(map(tuple, numbers["fir.k2d.kernel"].tolist()))
    else:
        kernel = KERNELS[name]
        np.testing.assert_allclose(kernel, numbers[f"fir.{name}.kernel1d"])
    np.testing.assert_allclose(kernel_2d(kernel), numbers[f"fir.{name}.kernel2d_normalised"], rtol=1e-6)
    x = channels_last(numbers["fir.x"])
    for function, found in ((up, "up"), (down, "down")):
        expected = channels_last(numbers[f"fir.{name}.{found}"])
        np.testing.assert_allclose(function(x, kernel), expected, atol=2e-6)


def test_repeated_pixels_and_means_equal_the_release(numbers):
    x = channels_last(numbers["fir.x"])
    np.testing.assert_array_equal(up(x, None), channels_last(numbers["naive.up"]))
    np.testing.assert_allclose(down(x, None), channels_last(numbers["naive.down"]), atol=1e-6)


class Layer(nn.Module):
    """A resampling convolution, with the weights of its kernel and bias."""

    function: object
    kernel: object

    @nn.compact
    def __call__(self, x):
        return self.function(x, 5, self.kernel)


@pytest.mark.parametrize(
    ("function", "kernel", "found", "has_bias"),
    [
        (down_conv, "1331", "firconv.1331.down_nobias", False),
        (down_conv, "1331", "firconv.module_down_with_bias", True),
        (down_conv, "asym", "firconv.asym.down_nobias", False),
        (up_conv, "1331", "firconv.1331.up_nobias_corrected", False),
        (up_conv, "asym", "firconv.asym.up_nobias_corrected", False),
        (down_conv, None, "plainconv.down", True),
        (up_conv, None, "plainconv.up", True),
    ],
)
def test_resampling_convolutions_equal_the_release(numbers, function, kernel, found, has_bias):
    weight, bias = jnp.asarray(numbers["firconv.w_oihw"].transpose(2, 3, 1, 0)), numbers["firconv.b"]
    name = "Conv_0" if kernel is None else "Conv2d_0"
    params = {name: {"kernel": weight, "bias": jnp.asarray(bias if has_bias else np.zeros_like(bias))}}
    layer = Layer(function, KERNELS.get(kernel))
    out = layer.apply({"params": params}, channels_last(numbers["fir.x"]))
    np.testing.assert_allclose(out, channels_last(numbers[found]), atol=5e-6)


def test_a_filter_keeps_a_constant_image_in_its_interior_and_fades_at_its_border():
    x = jnp.ones((1, 6, 4, 1))
    doubled = up(x, KERNELS["1331"])[0, :, :, 0]
    np.testing.assert_allclose(doubled[1:-1, 1:-1], 1.0, rtol=1e-6)
    np.testing.assert_allclose([doubled[0, 3], doubled[0, 0]], [0.75, 0.75**2], rtol=1e-6)


def test_a_kernel_of_one_entry_only_moves_pixels():
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
    np.testing.assert_array_equal(fir(x, (2.0,), (0, 0)), x)
    np.testing.assert_array_equal(fir(x, (2.0,), (-1, 0)), x[:, 1:, 1:])
    np.testing.assert_array_equal(fir(x, (2.0,), (0, 0), stride=2), x[:, ::2, ::2])


def test_odd_images_are_not_halved():
    for function in (down, lambda x, kernel: Layer(down_conv, kernel).init(jax.random.key(0), x)):
        for kernel in (None, KERNELS["1331"]):
            with pytest.raises(ValueError, match="height and width must be even there, found 5×4 pixels"):
                function(jnp.ones((1, 5, 4, 1)), kernel)
