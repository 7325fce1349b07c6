"""Datasets by name, through TensorFlow Datasets and without TensorFlow."""

import dataclasses
import math

import numpy as np
import requests
import tensorflow_datasets as tfds
from grain.sources import RandomAccessDataSource
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from ncsn_jax.data.digits import Digits
from ncsn_jax.data.mnist import Mnist
from ncsn_jax.data.points import POINTS, draw_points
from ncsn_jax.errors import UserError

IN_MEMORY_BYTES = 2**30

NOT_TO_BE_HAD = (
    requests.exceptions.RequestException,
    tfds.download.DownloadError,
    NonMatchingChecksumError,
)

Source = np.ndarray | RandomAccessDataSource
"""Examples by index, uint8 images or float32 points: an array, or what reads them one at a time."""


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What is known of a dataset without its files.

    Attributes:
      shape: of one example: (height, width, channels) of an image, (D,) of a point.
      num_values: how many values a pixel can have, 0 … num_values − 1; None for real numbers.
    """

    shape: tuple[int, ...]
    num_values: int | None


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The examples of a dataset's two splits."""

    info: DatasetInfo
    train: Source
    test: Source


IMAGES = {
    "digits": (Digits, DatasetInfo((8, 8, 1), num_values=17)),
    "mnist": (Mnist, DatasetInfo((28, 28, 1), num_values=256)),
}


def describe(name: str) -> DatasetInfo:
    """The shape and the range of a dataset's examples; reads no files.

    Args:
      name: a dataset of `IMAGES` or `ncsn_jax.data.points.POINTS`.

    Raises:
      UserError: if the name is unknown.
    """
    if name in POINTS:
        return DatasetInfo((2,), num_values=None)
    if name not in IMAGES:
        accepted = ", ".join((*IMAGES, *POINTS))
        raise UserError(f"config.data.name={name!r}: unknown dataset; accepted: {accepted}")
    return IMAGES[name][1]


def load(name: str, data_dir: str | None = None) -> Dataset:
    """The examples of a dataset; one of images is downloaded and prepared first if need be.

    Up to 1 GiB of images are held in memory; more are read and decoded as they are needed.

    Args:
      name: a dataset of `IMAGES` or `ncsn_jax.data.points.POINTS`.
      data_dir: where prepared datasets lie, for TFDS to read and write; its own directory if None.

    Raises:
      UserError: if the name is unknown, or the dataset is neither prepared nor to be had.
    """
    info = describe(name)
    if name in POINTS:
        return Dataset(info, *draw_points(name))
    place = f"in {data_dir or 'the default data_dir'}"
    try:
        builder = IMAGES[name][0](data_dir=data_dir, file_format="array_record")
        if not builder.is_prepared():
            _prepare(builder)
        return Dataset(info, *(_source(builder, split, info) for split in ("train", "test")))
    except NOT_TO_BE_HAD as error:
        raise UserError(
            f"dataset {name} is not prepared {place} and can't be downloaded ({_one_line(error)}); "
            "prepare it on a machine with a network and copy it there, or name its place by "
            "--config.data.data_dir"
        ) from error
    except (NotImplementedError, RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"dataset {name} {place} can't be read or written as array_record ({_one_line(error)}); "
            "name another place by --config.data.data_dir"
        ) from error


def _prepare(builder: tfds.core.DatasetBuilder) -> None:
    if isinstance(builder, Mnist):
        # TFDS retries a download for minutes; this asks once whether there is a network at all.
        requests.head(builder.URL, timeout=10)
    builder.download_and_prepare()


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


class _DecodedImages:
    """The images of a TFDS split, decoded one at a time."""

    def __init__(self, source):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index):
        return self._source[index]["image"]


def _source(builder: tfds.core.DatasetBuilder, split: str, info: DatasetInfo) -> Source:
    source = builder.as_data_source(split)  # pyright: ignore[reportCallIssue]
    if len(source) * math.prod(info.shape) > IN_MEMORY_BYTES:
        return _DecodedImages(source)
    return np.stack([example["image"] for example in source.__getitems__(range(len(source)))])
