import numpy as np
import pytest
from PIL import Image

from ncsn_jax import viz


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_holds_its_images_in_reading_order(channels, tmp_path):
    images = np.linspace(0, 1, 5 * 4 * 6 * channels).reshape(5, 4, 6, channels)
    grid = viz.image_grid(images, min_size=1)
    assert grid.shape == (1 + 2 * 5, 1 + 3 * 7, channels)
    pixels = np.round(255 * images).astype(np.uint8)
    np.testing.assert_array_equal(grid[1:5, 1:7], pixels[0])
    np.testing.assert_array_equal(grid[6:10, 8:14], pixels[4])
    assert (grid[6:10, 15:21] == 255).all()
    viz.save_png(tmp_path / "grid.png", grid)
    with Image.open(tmp_path / "grid.png") as image:
        np.testing.assert_array_equal(np.asarray(image).reshape(grid.shape), grid)


def test_values_outside_the_unit_interval_are_clipped():
    grid = viz.image_grid(np.array([-3.0, 0.5, 7.0]).reshape(1, 1, 3, 1), min_size=1)
    assert grid[1, 1:4, 0].tolist() == [0, 128, 255]


def test_small_grids_are_enlarged():
    images = np.zeros((4, 8, 8, 1))
    small, large = viz.image_grid(images, min_size=1), viz.image_grid(images, min_size=190)
    np.testing.assert_array_equal(large, small.repeat(10, axis=0).repeat(10, axis=1))
