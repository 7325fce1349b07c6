"""Datasets by name: TensorFlow Datasets (without TensorFlow), folders of images, arrays, and toy points."""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import requests
import tensorflow_datasets as tfds
from grain.sources import RandomAccessDataSource
from jaxtyping import Int, Shaped
from PIL import Image
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from ncsn_jax.data.arrays import Facts, Normalize, checked, measured, read_arrays, split_examples
from ncsn_jax.data.celeb_a import CelebA
from ncsn_jax.data.cifar10 import Cifar10
from ncsn_jax.data.conditions import (
    ONLY,
    ConditionalExamples,
    Conditions,
    Part,
    classes_of_directories,
    columns_of_images,
    conditions_of_arrays,
    with_facts,
)
from ncsn_jax.data.digits import Digits
from ncsn_jax.data.folder import load_folder, names_of_splits
from ncsn_jax.data.mnist import FashionMnist, Mnist
from ncsn_jax.data.png import pillow_image
from ncsn_jax.data.points import POINTS, draw_points
from ncsn_jax.data.preprocessing import DatasetInfo
from ncsn_jax.data.resizing import resized
from ncsn_jax.data.settings import Data
from ncsn_jax.data.svhn_cropped import SvhnCropped
from ncsn_jax.runtime.errors import ArgumentError, UserError, reason
from ncsn_jax.runtime.paths import FOR_BUCKETS, is_url
from ncsn_jax.transforms import IDENTITY, LOGIT, RESCALE

IN_MEMORY_BYTES = 2**30

UNAVAILABLE = (
    requests.exceptions.RequestException,
    tfds.download.DownloadError,
    NonMatchingChecksumError,
)

Source = np.ndarray | RandomAccessDataSource
"""Examples by index: an array, or a source that reads one at a time, such as dictionaries of arrays."""

Resize = Callable[[Image.Image], np.ndarray]
"""A function from a decoded image to pixels of the dataset's shape."""


Labels = tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]
"""Classes of the training and the test images, 0 … K − 1."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The examples of a dataset's two splits.

    Attributes:
      name: the dataset's name, for messages.
      info: the shape and the range of the examples, and their preprocessing.
      train: the training examples.
      test: the test examples.
      load_labels: a function that reads the classes of all images; None if the dataset has no classes.
      identity: the settings, as JSON, that the examples and their preprocessing depend on.
      facts: the measured facts of arrays; None of other datasets.
      train_conditions: the conditions of the training examples; None if there are none.
      test_conditions: the conditions of the test examples.
    """

    name: str
    info: DatasetInfo
    train: Source
    test: Source
    load_labels: Callable[[], Labels] | None = None
    identity: dict[str, Any] = dataclasses.field(default_factory=dict)
    facts: Facts | None = None
    train_conditions: Conditions | None = None
    test_conditions: Conditions | None = None

    @property
    def train_examples(self) -> Source:
        """The training examples, with their conditions if they have some."""
        if self.train_conditions is None:
            return self.train
        return ConditionalExamples(self.train, self.train_conditions)

    @property
    def test_examples(self) -> Source:
        """The test examples, with their conditions if they have some."""
        if self.test_conditions is None:
            return self.test
        return ConditionalExamples(self.test, self.test_conditions)

    def classes(self) -> Labels | None:
        """Return the classes of all examples, if they are the condition; else None."""
        if self.train_conditions is None or self.test_conditions is None:
            return None
        facts = self.train_conditions.facts.get(ONLY)
        if facts is None or facts.kind != "class":
            return None
        return self.train_conditions.stored[ONLY], self.test_conditions.stored[ONLY]


TRANSFORMS = {"none": IDENTITY, "rescale": RESCALE, "logit": LOGIT}
"""Transforms by `Data.transform`."""
RGB32 = DatasetInfo((32, 32, 3), num_values=256)
IMAGES = {
    "digits": (Digits, DatasetInfo((8, 8, 1), num_values=17)),
    "mnist": (Mnist, DatasetInfo((28, 28, 1), num_values=256)),
    "fashion_mnist": (FashionMnist, DatasetInfo((28, 28, 1), num_values=256)),
    "cifar10": (Cifar10, RGB32),
    "svhn_cropped": (SvhnCropped, RGB32),
    "celeb_a": (CelebA, DatasetInfo((218, 178, 3), num_values=256)),
}
FOLDER = "folder"
OF_IMAGES = ("crop", "image_size", "fit", "random_flip", "dequantization", "transform")
ARRAYS = "arrays"
FITTED = ("crop", "image_size", "fit")
OF_FOLDERS = ("channels", "test_fraction", "corrupt")
"""Settings that apply only to folders, as `OF_IMAGES` apply only to images."""
OF_CONDITIONS = ("condition", "conditions")
OF_ARRAYS = ("normalize", "shape", "num_values", "offset", "scale")
"""Settings that apply only to arrays."""


def describe(settings: Data) -> DatasetInfo:
    """Return the facts about a dataset, cropped and resized; read no files but arrays not measured before.

    Args:
      settings: the dataset; its name is one of `IMAGES`, `POINTS`, `folder`, or `arrays`.

    Raises:
      ArgumentError: if the name is unknown, or a setting doesn't apply to the dataset.
    """
    name = settings.name
    refuse(settings, ("fields",), "is a dataset of this package")
    if name == ARRAYS:
        _refuse_other_conditions(settings)
        facts = facts_of(settings)
        return load(settings).info if facts is None else _info_of_arrays(settings, facts)
    refuse(settings, OF_ARRAYS, "is not an array")
    if name in POINTS:
        refuse(settings, OF_IMAGES + OF_FOLDERS, "are points, not images")
        _refuse_other_conditions(settings)
        return DatasetInfo((2,), num_values=None)
    if name == FOLDER:
        if settings.image_size is None:
            raise ArgumentError("image_size=None: a folder needs one image size; accepted: pixels")
        shape, num_values = (settings.image_size, settings.image_size, settings.channels), 256
    elif name in IMAGES:
        shape, num_values = IMAGES[name][1].shape, IMAGES[name][1].num_values
        refuse(settings, OF_FOLDERS, "is not a folder of images")
        if settings.crop is not None and settings.crop > min(shape[:2]):
            raise ArgumentError(
                f"crop={settings.crop}: larger than the images of {name}, {shape[0]}×{shape[1]} pixels"
            )
        size = settings.image_size or settings.crop
        shape = shape if size is None else (size, size, shape[2])
    else:
        accepted = ", ".join((*IMAGES, FOLDER, ARRAYS, *POINTS))
        raise ArgumentError(f"name={name!r}: unknown dataset; accepted: {accepted}")
    _refuse_other_conditions(settings)
    return DatasetInfo(shape, num_values, settings.dequantization, TRANSFORMS[settings.transform])


def _refuse_other_conditions(settings: Data) -> None:
    of_name = {"celeb_a": ("attributes",), FOLDER: ("class", "columns"), ARRAYS: ("file",)}
    known = ("none", *of_name.get(settings.name, ("class",) if settings.name in IMAGES else ()))
    if settings.condition not in known:
        raise ArgumentError(
            f"condition={settings.condition!r}: {settings.name!r} has no such condition; accepted: "
            f"{', '.join(map(repr, known))}"
        )


def refuse(settings: Data, names: tuple[str, ...], reason: str) -> None:
    """Refuse settings that would have no effect."""
    for name in names:
        value = getattr(settings, name)
        if value != Data.model_fields[name].get_default(call_default_factory=True):
            raise ArgumentError(f"{name}={value!r}: {settings.name!r} {reason}")


def load(settings: Data) -> Dataset:
    """Return the examples of a dataset; download and prepare a TFDS one first if necessary.

    A split of up to 1 GiB is kept in memory; images of a larger one are read and decoded on access.

    Args:
      settings: the name, the directory of the files, and the cropping and resizing.

    Raises:
      ArgumentError: if the name is unknown, or a setting doesn't fit.
      UserError: if the dataset is neither prepared nor available for download; or if a folder has no images,
        or images that can't be decoded.
    """
    if settings.name == ARRAYS:
        return _arrays(settings)
    info, name = describe(settings), settings.name
    load_labels = None
    if name in POINTS:
        train, test = draw_points(name)
    elif name == FOLDER:
        train, test = _folder(settings, info)
    else:
        train, test = _tfds(settings, info)
        if has_labels(settings):
            load_labels = functools.partial(_all_labels, settings)
    identity = settings.model_dump(exclude={"data_dir", "fields", *OF_ARRAYS, *OF_CONDITIONS})
    found = [None, None]
    if settings.condition != "none":
        part = _condition(settings)
        if settings.condition == "class":
            load_labels = functools.partial(tuple, part[:2])
        found = with_facts(settings, {ONLY: part}, info.shape, IN_MEMORY_BYTES)
    return Dataset(name, info, train, test, load_labels, identity, None, *found)


def _condition(settings: Data) -> Part:
    """Return the condition of images: TFDS's, or a folder's."""
    if settings.name != FOLDER:
        features: Any = _builder(settings).info.features
        if settings.condition == "class":
            return Part(*_all_labels(settings), tuple(features["label"].names))
        return _attributes(settings)
    directory = Path(str(settings.data_dir))
    splits = names_of_splits(directory, settings.test_fraction)
    if settings.condition == "class":
        return classes_of_directories(directory, splits)
    known = settings.conditions.get(ONLY)
    return columns_of_images(directory, splits, known.names if known else ())


def from_arrays(
    train: Shaped[np.ndarray, "n *event"],
    test: Shaped[np.ndarray, "m *event"] | None = None,
    *,
    normalize: Normalize = "standard",
    test_fraction: float = 0.1,
) -> Dataset:
    """Return arrays in memory as a dataset, such as for an `Experiment`.

    `preprocessing(dataset.info)` maps its examples to the network's space, and
    `dataset.info.transform.inverse` maps samples back to the units of the data.

    Args:
      train: the training examples, `(n, height, width, channels)`, `(n, height, width)` or `(n, D)`.
      test: the test examples; None splits `train` by a hash of an example's place.
      normalize: the normalisation of each channel (see `Data.normalize`).
      test_fraction: the approximate fraction of test examples in `train`, if `test` is None.

    Raises:
      UserError: if numbers aren't finite, a channel is constant, or the shapes don't fit.
    """
    settings = Data(name=ARRAYS, normalize=normalize, test_fraction=test_fraction)
    arrays = {"train": train} if test is None else {"train": train, "test": test}
    return _dataset_of(settings, {name: checked(name, np.asarray(array)) for name, array in arrays.items()})


def facts_of(settings: Data) -> Facts | None:
    """Return the facts of arrays that were measured before; None if there are none."""
    if settings.shape is None:
        return None
    return Facts(settings.shape, settings.num_values, settings.offset, settings.scale)


def _arrays(settings: Data) -> Dataset:
    refuse(settings, ("fields",), "is a dataset of this package")
    refuse(settings, ("channels", "corrupt"), "is not a folder of images")
    if settings.data_dir is None:
        raise ArgumentError("data_dir=None: 'arrays' needs the directory or the file of the arrays")
    if is_url(settings.data_dir):
        raise ArgumentError(
            f"data_dir={settings.data_dir!r}: 'arrays' reads local files; copy the arrays to a directory"
        )
    return _dataset_of(settings, read_arrays(Path(settings.data_dir)))


def _dataset_of(settings: Data, arrays: dict[str, Any]) -> Dataset:
    train, test = split_examples(arrays, normalize=settings.normalize, test_fraction=settings.test_fraction)
    facts = facts_of(settings) or measured(train, test, settings.normalize)
    if train[0].shape != facts.shape:
        raise UserError(
            f"train: found examples of the shape {train[0].shape}; accepted: {facts.shape}, as before"
        )
    info = _info_of_arrays(settings, facts)
    kept = [part.in_memory_if_small(IN_MEMORY_BYTES) for part in (train, test)]
    identity = settings.model_copy(update=facts._asdict()).model_dump(
        mode="json", exclude={"data_dir", "fields", *OF_CONDITIONS}
    )
    conditions = [None, None]
    if settings.condition != "none":
        parts = conditions_of_arrays(arrays, (train.numbers, test.numbers))
        conditions = with_facts(settings, parts, facts.shape, IN_MEMORY_BYTES)
        if settings.random_flip and any(each.kind == "image" for each in conditions[0].facts.values()):
            raise ArgumentError("random_flip=True: it would flip x but not its condition; accepted: False")
    dataset = Dataset(ARRAYS, info, kept[0], kept[1], None, identity, facts, *conditions)
    classes = dataset.classes()
    return dataclasses.replace(dataset, load_labels=None if classes is None else lambda: classes)


def _info_of_arrays(settings: Data, facts: Facts) -> DatasetInfo:
    refuse(settings, FITTED, "are arrays of their final size")
    if facts.num_values is None:
        refuse(settings, ("dequantization", "transform"), "are images only of 8 bits with normalize='none'")
        if len(facts.shape) == 1:
            refuse(settings, ("random_flip",), "are vectors, not images")
    images = {"dequantization": settings.dequantization, "transform": TRANSFORMS[settings.transform]}
    return facts.info(**images)


def _folder(settings: Data, info: DatasetInfo) -> tuple[Source, Source]:
    if settings.data_dir is None:
        raise ArgumentError("data_dir=None: 'folder' needs the directory of the images")
    if is_url(settings.data_dir):
        raise ArgumentError(
            f"data_dir={settings.data_dir!r}: 'folder' reads a local directory; copy the images to one"
        )
    return load_folder(
        settings.data_dir,
        decode=_resize(settings, info),
        test_fraction=settings.test_fraction,
        corrupt=settings.corrupt,
        in_memory_bytes=IN_MEMORY_BYTES,
    )


def _resize(settings: Data, info: DatasetInfo) -> Resize:
    return functools.partial(
        resized,
        size=settings.image_size,
        crop=settings.crop,
        fit=settings.fit,
        channels=1 if info.shape[2] == 1 else 3,
    )


def has_labels(settings: Data) -> bool:
    """Return whether every image of a TFDS dataset belongs to a class; read no files."""
    return "label" in dict(_builder(settings).info.features or {})  # pyright: ignore


def _attributes(settings: Data) -> Part:
    """Return the attributes of CelebA's images, 0 or 1."""
    builder = _builder(settings)
    names = tuple(sorted(builder.info.features["attributes"]))  # pyright: ignore

    def of_split(split: str) -> np.ndarray:
        source = _undecoded(builder, split)
        found = (example["attributes"] for example in source.__getitems__(range(len(source))))
        return np.array([[each[name] for name in names] for each in found], np.float32)

    return Part(of_split("train"), of_split("test"), names)


def _all_labels(settings: Data) -> Labels:
    train, test = (_labels(_builder(settings), split) for split in ("train", "test"))
    return train, test


def _builder(settings: Data) -> tfds.core.DatasetBuilder:
    return IMAGES[settings.name][0](data_dir=settings.data_dir, file_format="array_record")


def _labels(builder: tfds.core.DatasetBuilder, split: str) -> np.ndarray:
    source = _undecoded(builder, split)
    return np.array([example["label"] for example in source.__getitems__(range(len(source)))])


def _undecoded(builder: tfds.core.DatasetBuilder, split: str) -> Any:
    decoders = {"image": tfds.decode.SkipDecoding()}
    return builder.as_data_source(split, decoders=decoders)  # pyright: ignore[reportCallIssue]


def _tfds(settings: Data, info: DatasetInfo) -> tuple[Source, Source]:
    resize = _resize(settings, info) if settings.crop or settings.image_size else None
    name, data_dir = settings.name, settings.data_dir
    place = f"in {data_dir or 'the default data_dir'}"
    try:
        builder = _builder(settings)
        if not builder.is_prepared():
            _prepare(builder)
        train, test = (_source(builder, split, info, resize) for split in ("train", "test"))
        return train, test
    except UNAVAILABLE as error:
        raise UserError(
            f"dataset {name} is not prepared {place} and can't be downloaded ({reason(error)}); "
            "prepare it on a machine with a network and copy it there, or set its place with "
            "`data_dir`"
        ) from error
    except UserError:
        raise
    except ImportError as error:  # the package for buckets is missing
        raise ArgumentError(f"data_dir={data_dir!r}: {error}; {FOR_BUCKETS}") from error
    except Exception as error:  # damaged files raise many types
        raise UserError(
            f"dataset {name} {place} can't be read or written as array_record ({reason(error)}); "
            "choose another place with `data_dir`"
        ) from error


def _prepare(builder: tfds.core.DatasetBuilder) -> None:
    url = getattr(builder, "URL", None)
    by_hand = Path(builder.data_dir).parents[1] / "downloads" / "manual"
    if url and not by_hand.exists():
        # TFDS retries a download for minutes; this checks once whether there is a network.
        requests.head(url, timeout=10)
    builder.download_and_prepare()


class _DecodedImages:
    """The images of a TFDS split, decoded and, if necessary, resized on access."""

    def __init__(self, source, resize: Resize | None):
        self._source = source
        self._resize = resize

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index):
        return self._resized(self._source[index])

    def in_memory(self) -> np.ndarray:
        """Return all images, read by the thousand: single reads take three times as long."""
        numbers = range(len(self))
        thousands = [numbers[i : i + 1000] for i in numbers[::1000]]
        return np.stack([self._resized(e) for some in thousands for e in self._source.__getitems__(some)])

    def _resized(self, example) -> np.ndarray:
        pixels = example["image"]
        if self._resize is None:
            return pixels
        return self._resize(pillow_image(pixels))


def _source(
    builder: tfds.core.DatasetBuilder, split: str, info: DatasetInfo, resize: Resize | None
) -> Source:
    images = _DecodedImages(builder.as_data_source(split), resize)  # pyright: ignore[reportCallIssue]
    is_small = len(images) * math.prod(info.shape) <= IN_MEMORY_BYTES
    return images.in_memory() if is_small else images
