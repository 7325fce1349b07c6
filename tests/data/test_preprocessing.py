import jax
import jax.numpy as jnp
import numpy as np

from ncsn_jax.data import dequantize, random_flip


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


def test_half_of_the_images_are_mirrored():
    image = jnp.arange(6, dtype=jnp.uint8).reshape(2, 3, 1)
    keys = jax.random.split(jax.random.key(2), 10_000)
    flipped = np.asarray(jax.vmap(lambda key: random_flip(key, image))(keys))
    image = np.asarray(image)
    mirrored = (flipped == image[:, ::-1]).all((1, 2, 3))
    assert (mirrored | (flipped == image).all((1, 2, 3))).all()
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(10_000)
