"""Pictures: grids of images, points, animations of chains, score fields and curves.

Functions that take `axes` draw on matplotlib axes; `rendered` turns a figure into an array of pixels, which
`save_png` and `save_gif` write. Nothing here opens a window or needs a display.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from ncsn_jax.runtime.files import write_whole

if TYPE_CHECKING:  # matplotlib takes half a second to import, and pictures of images don't need it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Picture = UInt8[np.ndarray, "height width channels"]
"""Pixels, grey or RGB, 8 bits per channel."""

LABEL_SIZE = 11
"""Height of the text under an image, in pixels."""

PlanarScore = Callable[[Float[Array, "2"]], Float[Array, "2"]]
PlanarDensity = Callable[[Float[Array, "2"]], Float[Array, ""]]


def pictures(
    states: Sequence[Float[np.ndarray, "n *event"]],
    *,
    labels: Sequence[str] | None = None,
    columns: int | None = None,
) -> list[Picture]:
    """Draw each state of the same samples as a picture: images in a grid, vectors as points of the plane.

    Args:
      states: images `(n, h, w, c)`, of which the first channel is shown unless there are 1 or 3, or
        `(n, h, w)`; or other arrays, whose first two values are shown in a square around 99 % of the last
        state's values.
      labels: the text under each image; None for none, and for vectors.
      columns: the number of images in a row; None makes the grid as square as possible.
    """
    states = [_drawable(state) for state in states]
    if states[-1].ndim == 4:
        return [image_grid(images, columns=columns, labels=labels) for images in states]
    from matplotlib.figure import Figure

    finite = states[-1][np.isfinite(states[-1])]
    low, high = np.quantile(finite, [0.005, 0.995]).tolist() if finite.size else (-1.0, 1.0)
    margin = 0.15 * (high - low) + 1e-6
    drawn = []
    for vectors in states:
        figure = Figure(figsize=(4, 4), dpi=100, layout="compressed")
        points(figure.add_subplot(), vectors, low=low - margin, high=high + margin)
        drawn.append(rendered(figure))
    return drawn


def _drawable(state: Float[np.ndarray, "n *event"]) -> Float[np.ndarray, "n *other"]:
    """Return grey or RGB images, or vectors of at least two values."""
    if state.ndim == 3:
        return state[..., None]
    if state.ndim == 4:
        return state if state.shape[-1] in (1, 3) else state[..., :1]
    vectors = state.reshape(len(state), -1)
    return np.pad(vectors, ((0, 0), (0, max(0, 2 - vectors.shape[1]))))


def image_grid(
    images: Float[np.ndarray, "n h w c"],
    *,
    columns: int | None = None,
    min_size: int = 400,
    labels: Sequence[str] | None = None,
) -> Picture:
    """Arrange images in a grid on a white ground.

    Args:
      images: grey or RGB images in [0, 1], `(n, h, w, c)`; values outside are clipped, and NaN is black.
      columns: the number of images in a row; None makes the grid as square as possible.
      min_size: the approximate width, in pixels, to which small grids are enlarged by a whole factor.
      labels: a short text under each image; None for none.

    Returns:
      The grid, 8 bits per channel, `(height, width, c)`.
    """
    n, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    pixels = np.round(255 * np.clip(np.nan_to_num(images), 0, 1)).astype(np.uint8)
    # White lines above and to the left of each image, and white images at the end.
    pixels = np.pad(pixels, ((0, rows * columns - n), (1, 0), (1, 0), (0, 0)), constant_values=255)
    grid = pixels.reshape(rows, columns, height + 1, width + 1, channels).swapaxes(1, 2)
    grid = grid.reshape(rows * (height + 1), columns * (width + 1), channels)
    grid = np.pad(grid, ((0, 1), (0, 1), (0, 0)), constant_values=255)
    factor = max(1, round(min_size / grid.shape[1]))
    grid = grid.repeat(factor, axis=0).repeat(factor, axis=1)
    return grid if labels is None else _labelled(grid, labels, rows, columns)


def _labelled(
    grid: UInt8[np.ndarray, "h w channels"], labels: Sequence[str], rows: int, columns: int
) -> Picture:
    """Return a grid with a strip of text under each row of images."""
    font = ImageFont.load_default(LABEL_SIZE)
    height, width, strip = grid.shape[0] / rows, grid.shape[1] / columns, LABEL_SIZE + 4
    size = (grid.shape[1], grid.shape[0] + rows * strip)
    picture = Image.new("L" if grid.shape[2] == 1 else "RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for row in range(rows):
        top, bottom = round(row * height), round((row + 1) * height)
        picture.paste(_image(grid[top:bottom]), (0, top + row * strip))
        for column, label in enumerate(labels[row * columns : (row + 1) * columns]):
            characters = max(1, int(width / draw.textlength("m", font)))
            text = label if draw.textlength(label, font) <= width else label[:characters]
            place = ((column + 0.5) * width, bottom + row * strip + strip / 2)
            draw.text(place, text, "black", font, anchor="mm")
    return np.asarray(picture).reshape(*size[::-1], -1)


def save_png(path: str | Path, picture: Picture) -> None:
    """Write a picture as PNG."""
    write_whole(Path(path), lambda file: _image(picture).save(file, "PNG"))


def save_gif(path: str | Path, frames: Sequence[Picture], *, seconds: float = 4.0) -> None:
    """Write pictures as an endless GIF that shows the last one for 2 seconds.

    Args:
      path: the file.
      frames: the pictures, all of one size.
      seconds: the total duration of the frames before the last.
    """
    each = round(1000 * seconds / len(frames))
    first, *rest = map(_image, frames)
    durations = [each] * len(rest) + [2000]
    # Pillow's optimisation takes as long as everything else and saves no bytes.
    options = dict(save_all=True, append_images=rest, duration=durations, loop=0, optimize=False)
    write_whole(Path(path), lambda file: first.save(file, "GIF", **options))


def rendered(figure: "Figure") -> Picture:
    """Render a matplotlib figure as RGB pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def points(axes: "Axes", x: Float[np.ndarray, "n D"], *, low: float, high: float) -> None:
    """Draw the first two coordinates of vectors, `(n, D)`, D ≥ 2, in the square [low, high]²."""
    axes.scatter(x[:, 0], x[:, 1], s=2, alpha=0.5, linewidths=0, color="tab:blue")
    _square(axes, low, high)


def score_field(
    axes: "Axes",
    score_fn: PlanarScore,
    *,
    low: float,
    high: float,
    log_density: PlanarDensity | None = None,
    arrows: int = 20,
) -> None:
    """Draw a score in the square [low, high]² as arrows, over contours of a log-density.

    Args:
      axes: the axes to draw on.
      score_fn: s(x) at a point of the plane.
      low: the left and the lower end.
      high: the right and the upper end.
      log_density: the log-density of the contours; None draws no contours.
      arrows: the number of arrows in a row.
    """
    if log_density is not None:
        x = _mesh(low, high, 100)
        values = np.asarray(jax.vmap(jax.vmap(log_density))(x))
        axes.contourf(x[..., 0], x[..., 1], values, levels=20, cmap="Blues", alpha=0.7)
    x = _mesh(low, high, arrows)
    score = np.asarray(jax.vmap(jax.vmap(score_fn))(x))
    axes.quiver(x[..., 0], x[..., 1], score[..., 0], score[..., 1], angles="xy", width=0.003)
    _square(axes, low, high)


def score_error(
    axes: "Axes", score_fn: PlanarScore, estimate: PlanarScore, *, low: float, high: float
) -> None:
    """Draw the error of a score, ‖ŝ − s‖/‖s‖, in the square [low, high]²: light at 0, dark from 1 on.

    Where s = 0, the error of any other ŝ is infinite.

    Args:
      axes: the axes to draw on.
      score_fn: s(x), the true score at a point of the plane.
      estimate: ŝ(x), the estimated score.
      low: the left and the lower end.
      high: the right and the upper end.
    """
    x = _mesh(low, high, 100)
    true, estimated = (np.asarray(jax.vmap(jax.vmap(s))(x)) for s in (score_fn, estimate))
    difference, norm = np.linalg.norm(estimated - true, axis=2), np.linalg.norm(true, axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.clip(np.where(difference == 0, 0, difference / norm), 0, 2)
    shown = axes.contourf(
        x[..., 0], x[..., 1], error, levels=np.linspace(0, 1, 11), cmap="Reds", extend="max"
    )
    axes.figure.colorbar(shown, ax=axes, shrink=0.8)
    _square(axes, low, high)


def chains(axes: "Axes", paths: Float[np.ndarray, "chains states 2"], *, low: float, high: float) -> None:
    """Draw the paths of chains in the square [low, high]², with a dot at the end of each."""
    for path in paths:
        axes.plot(path[:, 0], path[:, 1], linewidth=0.6, alpha=0.7)
    axes.plot(paths[:, -1, 0], paths[:, -1, 1], "k.", markersize=3)
    _square(axes, low, high)


def curves(
    axes: "Axes",
    series: Mapping[str, Float[np.ndarray, "n 2"]],
    *,
    xlabel: str = "step",
    ylabel: str = "loss",
) -> None:
    """Draw curves, such as losses over training steps.

    Args:
      axes: the axes to draw on.
      series: rows of (x, y), by label.
      xlabel: the label of x.
      ylabel: the label of y.
    """
    for label, rows in series.items():
        axes.plot(rows[:, 0], rows[:, 1], linewidth=0.8, label=label)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.legend()


def _mesh(low: float, high: float, count: int) -> Float[Array, "count count 2"]:
    side = jnp.linspace(low, high, count)
    return jnp.stack(jnp.meshgrid(side, side), axis=-1)


def _square(axes: "Axes", low: float, high: float) -> None:
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")


def _image(picture: Picture) -> Image.Image:
    return Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)
