import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ncsn_jax.densities import two_gaussians
from ncsn_jax.runtime import viz

SQUARE = dict(low=-8.0, high=8.0)


@pytest.mark.parametrize("channels", [1, 3])
def test_image_grid_holds_images_in_reading_order(channels, tmp_path):
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


def test_image_grid_clips_values_outside_the_unit_interval():
    grid = viz.image_grid(np.array([-3.0, 0.5, 7.0]).reshape(1, 1, 3, 1), min_size=1)
    assert grid[1, 1:4, 0].tolist() == [0, 128, 255]


def test_small_image_grids_are_enlarged():
    images = np.zeros((4, 8, 8, 1))
    small, large = viz.image_grid(images, min_size=1), viz.image_grid(images, min_size=190)
    np.testing.assert_array_equal(large, small.repeat(10, axis=0).repeat(10, axis=1))


@pytest.fixture
def axes():
    return Figure(figsize=(2, 2), dpi=50).add_subplot()


def test_pictures_of_points_share_the_extent_of_the_last_state():
    points = np.random.default_rng(0).normal(size=(50, 3))
    first, last = viz.pictures([100 * points, points])
    assert first.shape == last.shape == (400, 400, 3)
    # Most points of the first state are outside, and few of the last.
    assert (first < 255).any(-1).sum() < (last < 255).any(-1).sum()


def test_diverged_chains_are_still_drawn():
    points = np.full((3, 2), np.nan)
    assert viz.pictures([points])[0].shape == (400, 400, 3)
    points[0] = np.inf
    points[1] = 1.0
    assert viz.pictures([points])[0].shape == (400, 400, 3)


def test_pictures_of_images_are_image_grids():
    images = np.random.default_rng(0).uniform(size=(5, 4, 4, 1))
    (picture,) = viz.pictures([images])
    np.testing.assert_array_equal(picture, viz.image_grid(images))


def test_score_field_arrows_equal_the_score(axes):
    p = two_gaussians()
    viz.score_field(axes, p.score, log_density=p.log_density, arrows=3, **SQUARE)
    (quiver,) = [c for c in axes.collections if hasattr(c, "U")]
    np.testing.assert_array_equal(quiver.XY, [[x, y] for y in (-8, 0, 8) for x in (-8, 0, 8)])
    corner = p.score(jnp.array([8.0, -8.0]))
    np.testing.assert_allclose([quiver.U[2], quiver.V[2]], corner, rtol=1e-5)
    assert axes.get_xlim() == axes.get_ylim() == (-8, 8)
    assert viz.rendered(axes.figure).shape == (100, 100, 3)


def test_score_error_is_relative_to_the_score(axes):
    """An estimate that is half the score is wrong by 0.5 everywhere: one colour except for the frame."""
    p = two_gaussians()
    viz.score_error(axes, p.score, lambda x: 0.5 * p.score(x), **SQUARE)
    filled = axes.collections[0]
    assert filled.zmin == pytest.approx(0.5, abs=1e-5)
    assert filled.zmax == pytest.approx(0.5, abs=1e-5)


def test_score_error_is_dark_where_the_exact_score_is_zero(axes):
    """The relative error is infinite: drawn dark, like every error above 1, not left white."""
    viz.score_error(axes, lambda x: 0 * x, lambda x: x + 20, **SQUARE)
    assert axes.collections[0].zmin == axes.collections[0].zmax == 2
    middle = viz.rendered(axes.figure)[45:55, 25:35]
    assert middle.mean() < 150


def test_chains_are_drawn_as_lines_that_end_in_dots(axes):
    paths = np.cumsum(np.random.default_rng(0).normal(size=(3, 10, 2)), axis=1)
    viz.chains(axes, paths, **SQUARE)
    *lines, dots = axes.lines
    assert len(lines) == 3
    np.testing.assert_array_equal(lines[1].get_xydata(), paths[1])
    np.testing.assert_array_equal(dots.get_xydata(), paths[:, -1])


def test_curves_are_drawn_with_legend_and_axis_labels(axes):
    rows = np.array([[1, 5.0], [2, 3.0]])
    viz.curves(axes, {"train": rows, "test": rows + np.array([0, 1])}, ylabel="loss")
    np.testing.assert_array_equal(axes.lines[1].get_xydata(), [[1, 6], [2, 4]])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["train", "test"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "loss")


def test_a_saved_picture_equals_the_rendered_figure(axes, tmp_path):
    axes.plot([0, 1], [0, 1])
    picture = viz.rendered(axes.figure)
    viz.save_png(tmp_path / "figure.png", picture)
    with Image.open(tmp_path / "figure.png") as image:
        np.testing.assert_array_equal(np.asarray(image), picture)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (4, 6), (4, 6, 2), (4, 6, 5), (2, 3, 4, 5)])
def test_samples_of_any_shape_have_a_picture(shape):
    state = np.random.default_rng(0).random((6, *shape))
    (picture,) = viz.pictures([state])
    assert picture.ndim == 3
    assert picture.std() > 0


def test_a_picture_of_many_channels_shows_the_first():
    state = np.random.default_rng(0).random((4, 3, 3, 5))
    np.testing.assert_array_equal(*(viz.pictures([s])[0] for s in (state, state[..., :1])))
