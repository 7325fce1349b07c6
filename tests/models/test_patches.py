"""Networks of patches: the rearrangement, and the scores of exact densities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ncsn_jax import NCSN, as_score_fn
from ncsn_jax.models import Patches, patches
from ncsn_jax.models.patches import to_patches, to_pixels


class GaussianOfPatches(nn.Module):
    """The score of independent Gaussians whose variance depends on the place within a patch."""

    @nn.compact
    def __call__(self, x, sigma):
        variances = jnp.arange(1.0, x.shape[-1] + 1)[None, None, None]
        return -x / (variances + jnp.square(sigma)[:, None, None, None])


def test_a_patch_is_one_pixel_row_by_row():
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    found = to_patches(x, 2)
    assert found.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(found[1, 1, 2], x[1, 2:4, 4:6].ravel())
    np.testing.assert_array_equal(to_pixels(found, 2), x)


def test_the_score_of_patches_is_the_score_of_pixels():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
    sigma = jnp.array([0.5, 2.0])
    found = Patches(GaussianOfPatches(), 2).apply({}, x, sigma)
    variances = jnp.tile(jnp.array([[1.0, 2.0], [3.0, 4.0]]), (2, 2))[None, :, :, None]
    expected = -x / (variances + jnp.square(sigma)[:, None, None, None])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_discrete_levels_and_conditions_pass_through():
    levels = (1.0, 0.1)
    assert as_score_fn(Patches(NCSN(levels, 2), 2), {}).sigmas == levels
    assert as_score_fn(Patches(GaussianOfPatches(), 2), {}).sigmas is None

    class Given(nn.Module):
        def __call__(self, x, sigma, condition):
            return x * condition[:, None, None, None]

    found = Patches(Given(), 2).apply({}, jnp.ones((2, 2, 2, 1)), jnp.ones(2), jnp.array([2.0, 3.0]))
    np.testing.assert_array_equal(found[:, 0, 0, 0], [2.0, 3.0])


@pytest.mark.parametrize("shape", [(1, 4, 5, 1), (1, 3, 4, 1), (1, 4)])
def test_images_that_have_no_whole_patches_are_refused(shape, unchecked):
    model = unchecked(patches).Patches(GaussianOfPatches(), 2)
    with pytest.raises(ValueError, match=r"patch_size=2: x must be images, .* found the shape \(1, "):
        model.apply({}, jnp.ones(shape), jnp.ones(1))
