"""Pictures chosen by the user: numbers of test images, or a path."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from ncsn_jax.data.datasets import Dataset
from ncsn_jax.data.folder import read_images
from ncsn_jax.data.preprocessing import quantize
from ncsn_jax.runtime.errors import ArgumentError, UserError

ARRAYS = (".npy", ".npz")
NUMBERS = re.compile(r"\d+(:\d+)?(,\d+(:\d+)?)*")


def chosen_images(
    images: str | None,
    shape: tuple[int, ...],
    *,
    load_dataset: Callable[[], Dataset],
    fitted: Mapping[str, Any] | None = None,
) -> Float[np.ndarray, "n height width channels"]:
    """Return the chosen pictures, float32, 0 black and 1 white; of arrays, their numbers.

    Args:
      images: a directory of images, one image file, an array of such numbers in a `.npy` or `.npz` file, or,
        if no file has that name, numbers of test images such as `0,3,8:12` (8 to 11); None for the first
        eight of the test split.
      shape: the shape that they must have.
      load_dataset: a function that loads the dataset; called only for test images.
      fitted: the arguments `crop` and `fit` of `read_images`, which fit image files to the shape; None if
        they must already have it.

    Raises:
      ArgumentError: if such images don't exist, or have a different shape.
    """
    if images is None or (NUMBERS.fullmatch(images) and not Path(images).exists()):
        dataset = load_dataset()
        if dataset.info.shape != shape:
            raise ArgumentError(
                f"images={images or '0:8'}: the test images have the shape {dataset.info.shape}, not "
                f"{shape}; accepted: a directory of images, or an image file"
            )
        count = len(dataset.test)
        numbers = range(min(8, count)) if images is None else _numbers(images, count)
        examples = [dataset.test[number] for number in numbers]
        pixels = np.stack([e["x"] if isinstance(e, Mapping) else e for e in examples]).astype(np.float32)
        n = dataset.info.num_values
        return pixels if n is None else pixels / (n - 1)
    if not Path(images).exists():
        raise ArgumentError(
            f"images={images}: no such file or directory; accepted: a path, or numbers of test images such "
            "as 0,3,8:12"
        )
    if images.endswith(ARRAYS):
        return _numbers_of(Path(images), shape)
    height, width, channels = shape
    size = {} if fitted is None or height != width else {"size": height, **fitted}
    pixels = read_images(images, channels=1 if channels == 1 else 3, **size)
    if pixels.shape[1:] != shape:
        raise ArgumentError(
            f"images={images}: found images of the shape {pixels.shape[1:]}; accepted: {shape}"
        )
    return pixels.astype(np.float32) / 255


def stored_images(path: str | Path, dataset: Dataset) -> UInt8[np.ndarray, "n height width channels"]:
    """Return all pictures of a path, as pixels 0 … n − 1 of the dataset, without resizing.

    Args:
      path: a directory of images, an image file, or a `.npz` or `.npy` array `(n, height, width, channels)`,
        of 8-bit pixels or of numbers in [0, 1].
      dataset: the dataset to compare with; the pictures must have the shape of its images.

    Raises:
      UserError: if there are no images, their shape differs, or numbers are far outside of [0, 1].
    """
    path, info = Path(path), dataset.info
    if path.suffix in ARRAYS:
        pixels = _pixels(path)
    else:
        pixels = read_images(path, channels=1 if info.shape[2] == 1 else 3)
    if pixels.shape[1:] != info.shape:
        raise UserError(
            f"{path}: found images of the shape {pixels.shape[1:]}; accepted: {info.shape}, as in "
            f"{dataset.name!r}, because resizing would change the comparison"
        )
    if pixels.dtype == np.uint8:
        # 8-bit pixels have 256 values; a dataset with fewer gets the nearest one.
        n = info.num_values or 256
        return np.round(pixels * ((n - 1) / 255)).astype(np.uint8)
    low, high = np.quantile(pixels, [0.01, 0.99]) if np.isfinite(pixels).all() else (np.nan, np.nan)
    # Noise widens [0, 1] at both ends alike; other ranges, such as [−1, 1] or 0 … 255, have another middle.
    if not (low > -0.5 and high < 1.5) and not 0.25 < (low + high) / 2 < 0.75:
        raise UserError(
            f"{path}: found numbers from {low:.3g} to {high:.3g}; accepted: [0, 1], or 8-bit pixels"
        )
    return quantize(info)(pixels)


def read_array(path: Path) -> np.ndarray:
    """Return the array of a `.npy` file, or the only array, or `arr_0`, of a `.npz` file.

    Raises:
      UserError: if it can't be read, or holds something else.
    """
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            names = getattr(loaded, "files", [])
            if path.suffix == ".npz" and len(names) != 1 and "arr_0" not in names:
                raise ValueError(f"arrays {', '.join(names)}; accepted: one, or one named arr_0")
            array = loaded if not names else loaded["arr_0" if "arr_0" in names else names[0]]
    except Exception as error:  # damaged files raise many types
        raise UserError(f"{path}: can't be read as an array ({' '.join(str(error).split())})") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "buifc" or not array.size:
        raise UserError(f"{path}: found {_found(array)}; accepted: an array of numbers")
    return array


def _found(array: Any) -> str:
    return f"{getattr(array, 'dtype', '?')} of the shape {np.shape(array)}"


def _pixels(path: Path) -> np.ndarray:
    array = read_array(path)
    if array.ndim != 4 or array.dtype.kind not in "uf":
        raise UserError(
            f"{path}: found {_found(array)}; accepted: (n, height, width, channels), uint8 or floating"
        )
    return array if array.dtype == np.uint8 else array.astype(np.float32)


def _numbers_of(path: Path, shape: tuple[int, ...]) -> Float[np.ndarray, "n *event"]:
    """Return examples of an array's file, with an axis of channels."""
    array = read_array(path)
    array = array[..., None] if array.ndim == 3 and len(shape) == 3 else array
    if array.shape[1:] != shape or array.dtype.kind == "c":
        raise UserError(f"{path}: found {_found(array)}; accepted: real numbers of the shape (n, *{shape})")
    return array.astype(np.float32)


def _numbers(images: str, count: int) -> list[int]:
    numbers = []
    for part in images.split(","):
        first, _, last = part.partition(":")
        some = range(int(first), int(last)) if last else range(int(first), int(first) + 1)
        if not some or some[-1] >= count:
            raise ArgumentError(f"images={images}: accepted: numbers of the {count} test images, from 0")
        numbers += some
    return numbers
