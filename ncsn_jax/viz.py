"""Pictures: grids of images and animations of chains."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

Grid = UInt8[np.ndarray, "height width channels"]


def image_grid(images: Float[np.ndarray, "n h w c"], *, min_size: int = 400) -> Grid:
    """Images side by side, in as square a grid as holds them, on a white ground.

    Args:
      images: grey or RGB images in [0, 1]; what lies outside is clipped. `(n, h, w, c)`.
      min_size: small images are enlarged by whole factors until the grid is about this wide, in pixels.

    Returns:
      The grid, 8 bits a channel, `(height, width, c)`.
    """
    n, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    border = 1
    grid = np.full(
        (rows * (height + border) + border, columns * (width + border) + border, channels),
        255,
        np.uint8,
    )
    pixels = np.round(255 * np.clip(images, 0, 1)).astype(np.uint8)
    for i, image in enumerate(pixels):
        top = border + i // columns * (height + border)
        left = border + i % columns * (width + border)
        grid[top : top + height, left : left + width] = image
    factor = max(1, round(min_size / grid.shape[1]))
    return grid.repeat(factor, axis=0).repeat(factor, axis=1)


def save_png(path: Path, grid: Grid) -> None:
    """Writes a picture as PNG."""
    _image(grid).save(path, "PNG", optimize=True)


def save_gif(path: Path, grids: Sequence[Grid], *, seconds: float = 4.0) -> None:
    """Writes pictures as an endless GIF, the last one shown for 2 seconds.

    Args:
      path: the file.
      grids: the frames, all of one size.
      seconds: how long the frames before the last take together.
    """
    each = round(1000 * seconds / len(grids))
    first, *rest = map(_image, grids)
    durations = [each] * len(rest) + [2000]
    first.save(path, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)


def _image(grid: Grid) -> Image.Image:
    return Image.fromarray(grid.squeeze(-1) if grid.shape[-1] == 1 else grid)
