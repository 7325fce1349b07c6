"""Datasets by name, through TensorFlow Datasets and without TensorFlow."""

import dataclasses

import numpy as np
import requests
import tensorflow_datasets as tfds
from grain.sources import RandomAccessDataSource

from ncsn_jax.data.digits import Digits
from ncsn_jax.data.mnist import Mnist
from ncsn_jax.errors import UserError

BUILDERS = {"digits": Digits, "mnist": Mnist}
NUM_VALUES = {"digits": 17}
IN_MEMORY_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class ImageInfo:
    """What is known of a dataset without its files.

    Attributes:
      image_shape: (height, width, channels).
      num_values: how many values a pixel can have, 0 … num_values − 1.
    """

    image_shape: tuple[int, int, int]
    num_values: int


@dataclasses.dataclass(frozen=True)
class Images:
    """The uint8 images of a dataset: arrays, or what reads one image at a time when they are too large."""

    info: ImageInfo
    train: RandomAccessDataSource
    test: RandomAccessDataSource


def describe(name: str) -> ImageInfo:
    """The shape and the range of a dataset's images; reads no files.

    Args:
      name: `digits` or `mnist`.

    Raises:
      UserError: if the name is unknown.
    """
    height, width, channels = _builder(name, None).info.features["image"].shape
    return ImageInfo((height, width, channels), NUM_VALUES.get(name, 256))


def load(name: str, data_dir: str | None = None) -> Images:
    """The images of a dataset, which is downloaded and prepared first if need be.

    Up to 1 GiB of images are held in memory; more are read and decoded as they are needed.

    Args:
      name: `digits` or `mnist`.
      data_dir: where prepared datasets lie, for TFDS to read and write; its own directory if None.

    Raises:
      UserError: if the name is unknown, or the dataset is neither prepared nor to be had.
    """
    builder = _builder(name, data_dir)
    _prepare(builder)
    return Images(describe(name), *(_source(builder, split) for split in ("train", "test")))


def _builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    if name not in BUILDERS:
        raise UserError(f"config.data.name={name!r}: unknown dataset; accepted: {', '.join(BUILDERS)}")
    return BUILDERS[name](data_dir=data_dir, file_format="array_record")


def _prepare(builder: tfds.core.DatasetBuilder) -> None:
    if builder.is_prepared():
        return
    try:
        if isinstance(builder, Mnist):
            # TFDS retries a download for minutes; this asks once whether there is a network at all.
            requests.head(builder.URL, timeout=10)
        builder.download_and_prepare()
    except (requests.exceptions.RequestException, OSError) as error:
        raise UserError(
            f"dataset {builder.name} is not prepared in {builder.data_path} and can't be downloaded "
            f"({type(error).__name__}); prepare it on a machine with a network and copy it there, "
            "or name its place by --config.data.data_dir"
        ) from error


class _DecodedImages:
    """The images of a TFDS split, decoded one at a time."""

    def __init__(self, source):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index):
        return self._source[index]["image"]


def _source(builder: tfds.core.DatasetBuilder, split: str) -> RandomAccessDataSource:
    source = builder.as_data_source(split)
    shape = builder.info.features["image"].shape
    if len(source) * np.prod(shape) > IN_MEMORY_BYTES:
        return _DecodedImages(source)
    return np.stack([example["image"] for example in source.__getitems__(range(len(source)))])
