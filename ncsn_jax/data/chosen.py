"""Pictures that a user names: by their numbers in the test split, or by a path."""

import functools
import re

import numpy as np
from jaxtyping import Float

from ncsn_jax.config import Data
from ncsn_jax.data.datasets import load
from ncsn_jax.data.folder import read_images
from ncsn_jax.data.resizing import resized
from ncsn_jax.errors import UserError

NUMBERS = re.compile(r"\d+(:\d+)?(,\d+(:\d+)?)*")


def chosen_images(
    settings: Data, images: str | None, shape: tuple[int, ...], *, are_originals: bool = True
) -> Float[np.ndarray, "n height width channels"]:
    """The named pictures, float32, 0 black and 1 white.

    Args:
      settings: `config.data`, whose test split is meant.
      images: numbers such as `0,3,8:12` (8 to 11), or a directory of images or one image file; None for the
        first eight of the test split.
      shape: that they must have.
      are_originals: whether images of files are cropped and resized as the dataset's are; observations must
        have their size already.

    Raises:
      UserError: if there are no such images, or they have another shape.
    """
    if images is None or NUMBERS.fullmatch(images):
        dataset = load(settings)
        if dataset.info.shape != shape:
            raise UserError(
                f"--images={images}: the test images have the shape {dataset.info.shape}, not {shape}; "
                "accepted: a directory of images, or an image file"
            )
        count = len(dataset.test)
        numbers = range(min(8, count)) if images is None else _numbers(images, count)
        pixels = np.stack([dataset.test[number] for number in numbers])
        assert dataset.info.num_values is not None  # as of every image
        return pixels.astype(np.float32) / (dataset.info.num_values - 1)
    height, width, channels = shape
    fitted = {"size": height, "crop": settings.crop, "fit": settings.fit}
    decode = functools.partial(
        resized,
        **(fitted if are_originals and height == width else {"size": None}),
        channels=1 if channels == 1 else 3,
    )
    pixels = read_images(images, decode=decode)
    if pixels.shape[1:] != shape:
        raise UserError(f"--images={images}: found images of the shape {pixels.shape[1:]}; accepted: {shape}")
    return pixels.astype(np.float32) / 255


def _numbers(images: str, count: int) -> list[int]:
    numbers = []
    for part in images.split(","):
        first, _, last = part.partition(":")
        some = range(int(first), int(last)) if last else range(int(first), int(first) + 1)
        if not some or some[-1] >= count:
            raise UserError(f"--images={images}: accepted: numbers of the {count} test images, from 0")
        numbers += some
    return numbers
