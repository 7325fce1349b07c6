import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax.data import (
    DatasetInfo,
    as_bytes,
    dequantize,
    preprocessing,
    quantize,
    random_flip,
)
from ncsn_jax.data.datasets import TRANSFORMS


def test_dequantization_spreads_each_value_over_its_bin():
    values = jnp.arange(17, dtype=jnp.uint8)
    keys = jax.random.split(jax.random.key(0), 5000)
    x = np.asarray(jax.vmap(lambda key: dequantize(key, values, 17))(keys))
    np.testing.assert_array_equal(np.floor(x * 17), np.broadcast_to(np.arange(17), x.shape))
    standard_error = 1 / np.sqrt(12 * 5000) / 17
    assert np.abs(x.mean(0) - (np.arange(17) + 0.5) / 17).max() < 4 * standard_error


def test_256_values_are_dequantized_like_the_official_code():
    key, image = jax.random.key(1), jnp.arange(256, dtype=jnp.uint8)
    noise = jax.random.uniform(key, (256,))
    official = (np.arange(256) / 255) * 255 / 256 + noise / 256
    np.testing.assert_allclose(dequantize(key, image, 256), official, atol=1e-7)


def test_random_flip_mirrors_half_of_the_images():
    image = jnp.arange(6, dtype=jnp.uint8).reshape(2, 3, 1)
    keys = jax.random.split(jax.random.key(2), 10_000)
    flipped = np.asarray(jax.vmap(lambda key: random_flip(key, image))(keys))
    image = np.asarray(image)
    mirrored = (flipped == image[:, ::-1]).all((1, 2, 3))
    assert (mirrored | (flipped == image).all((1, 2, 3))).all()
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(10_000)


@pytest.mark.parametrize("num_values", [17, 256])
def test_each_dequantization_setting_has_its_mean_and_spread(num_values):
    keys = jax.random.split(jax.random.key(3), 4000)
    values = jnp.array([0, num_values // 2, num_values - 1], jnp.uint8)

    def draw(name):
        preprocess = preprocessing(DatasetInfo((3,), num_values, name))
        return np.asarray(jax.vmap(lambda key: preprocess(key, values))(keys))

    grid = np.asarray(values) / (num_values - 1)
    np.testing.assert_allclose(draw("none"), np.broadcast_to(grid, (4000, 3)), atol=1e-7)
    gaussian = draw("gaussian")
    np.testing.assert_allclose(gaussian.mean(0), grid, atol=4 * 0.01 / np.sqrt(4000))
    np.testing.assert_allclose(gaussian.std(0), 0.01, rtol=4 / np.sqrt(8000))
    uniform = draw("uniform")
    assert np.all(np.floor(uniform * num_values) == np.asarray(values))
    np.testing.assert_allclose(uniform.std(0), 1 / num_values / np.sqrt(12), rtol=0.05)


def test_transforms_map_known_values_and_stay_finite_at_the_ends():
    x = jnp.array([0.0, 0.25, 0.5, 1.0])
    np.testing.assert_array_equal(TRANSFORMS["none"].forward(x), x)
    np.testing.assert_allclose(TRANSFORMS["rescale"].forward(x), [-1.0, -0.5, 0.0, 1.0])
    np.testing.assert_allclose(TRANSFORMS["logit"].forward(x)[1:3], [np.log(0.25 / 0.75), 0.0], atol=1e-5)
    assert np.isfinite(TRANSFORMS["logit"].forward(x)).all()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_inverse_transform_recovers_the_input(name):
    x = jnp.linspace(0.0, 1.0, 101)
    transform = TRANSFORMS[name]
    np.testing.assert_allclose(transform.inverse(transform.forward(x)), x, atol=1e-6)


def test_preprocessing_leaves_points_unchanged():
    x = jnp.array([3.0, -7.0])
    preprocess = preprocessing(DatasetInfo((2,), None))
    np.testing.assert_array_equal(preprocess(jax.random.key(0), x), x)


@pytest.mark.parametrize("num_values", [17, 256])
@pytest.mark.parametrize("dequantization", ["uniform", "gaussian", "none"])
def test_quantizing_undoes_dequantizing(dequantization, num_values):
    """Exact for every value and noise, except that 0.01 z may reach other values, up and down alike."""
    info = DatasetInfo((1, 1, 1), num_values, dequantization)
    pixels = np.arange(num_values, dtype=np.uint8).repeat(50)
    noisy = np.asarray(preprocessing(info)(jax.random.key(0), jnp.asarray(pixels)))
    found = quantize(info)(noisy)
    if dequantization == "gaussian":
        inside = (pixels > 10) & (pixels < 245) if num_values == 256 else (pixels > 1) & (pixels < 15)
        shift = found[inside].astype(float) - pixels[inside]
        assert abs(shift.mean()) < 4 * shift.std() / np.sqrt(len(shift))
    else:
        np.testing.assert_array_equal(found, pixels)


def test_quantizing_rounds_and_clips_out_of_range_values():
    to_pixels = quantize(DatasetInfo((1, 1, 1), 256, "none"))
    np.testing.assert_array_equal(to_pixels(np.array([-0.5, 0.999, 1.5])), [0, 255, 255])


def test_as_bytes_scales_grey_values_to_the_range_0_to_255():
    np.testing.assert_array_equal(
        as_bytes(np.array([0, 8, 16], np.uint8), DatasetInfo((8, 8, 1), 17)), [0, 128, 255]
    )
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(as_bytes(every, DatasetInfo((8, 8, 1), 256)), every)
