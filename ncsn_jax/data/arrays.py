"""Arrays of numbers as data: of any shape, range and number of channels, in files or in memory."""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Shaped

from ncsn_jax.data.preprocessing import DatasetInfo
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.transforms import affine

Normalize = Literal["standard", "range", "none"]

SPLITS = ("train", "test")
HDF5 = (".h5", ".hdf5")
ACCEPTED = (
    "accepted: a directory with train.npy, and test.npy if you have it; or a .npz or .h5 file with the "
    "arrays train and test"
)
SHAPES = "(n, height, width, channels), (n, height, width) or (n, D)"
CHUNK_BYTES = 2**26
"""Bytes that are read at once to measure an array."""


class Facts(NamedTuple):
    """Facts of the training examples that their preprocessing depends on.

    Attributes:
      shape: the shape of an example, (height, width, channels) or (D,).
      num_values: for images of 8 bits that keep their values, their number, 1 + the largest; else None.
      offset: the number that becomes 0, for each channel, or coordinate of a vector; empty if there is none.
      scale: the difference that becomes 1, likewise.
    """

    shape: tuple[int, ...]
    num_values: int | None = None
    offset: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    def info(self, **images: Any) -> DatasetInfo:
        """Return the facts of a dataset; `images` are the dequantization and the transform of images."""
        if self.num_values is not None:
            return DatasetInfo(self.shape, self.num_values, **images)
        if self.offset:
            return DatasetInfo(self.shape, None, transform=affine(self.offset, self.scale))
        return DatasetInfo(self.shape, None)


class NpyFile:
    """The array of an `.npy` file; an example is mapped into memory only while it is copied."""

    def __init__(self, path: Path):
        self._path = path
        mapped = np.load(path, mmap_mode="r")
        self.shape, self.dtype, self._offset = mapped.shape, mapped.dtype, mapped.offset
        if mapped.flags.f_contiguous and not mapped.flags.c_contiguous:
            raise UserError(f"{path}: found an array in Fortran order; write it with np.ascontiguousarray")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: SupportsIndex) -> np.ndarray:
        number, event = range(len(self))[index], self.shape[1:]
        offset = self._offset + number * self.dtype.itemsize * int(np.prod(event))
        return np.array(np.memmap(self._path, self.dtype, "r", offset, event))


class Examples:
    """Examples of an array as the network's: with an axis of channels, float32 unless they are images.

    Attributes:
      numbers: the places of the examples in the array.
    """

    def __init__(self, array: Any, numbers: Sequence[int], *, keeps_type: bool):
        self._array = array
        self._keeps_type = keeps_type
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: SupportsIndex) -> np.ndarray:
        x = np.asarray(self._array[self.numbers[int(index)]])
        x = x[..., None] if x.ndim == 2 else x
        return x if self._keeps_type else x.astype(np.float32)

    def chunks(self) -> Iterator[Shaped[np.ndarray, "n *event"]]:
        """Yield all examples, some at a time."""
        size = max(1, CHUNK_BYTES // self[0].nbytes)
        for first in range(0, len(self), size):
            yield np.stack([self[i] for i in range(first, min(first + size, len(self)))])

    def in_memory_if_small(self, limit: int) -> "np.ndarray | Examples":
        """Return one array if it has at most `limit` bytes, and otherwise the examples themselves."""
        return np.concatenate(list(self.chunks())) if len(self) * self[0].nbytes <= limit else self


def read_arrays(place: Path) -> dict[str, Any]:
    """Return the arrays of examples and of conditions in a directory or a file, by name.

    Raises:
      UserError: if there is no array `train`, or a file can't be read.
    """
    if place.is_dir():
        found = {
            path.stem: _opened(path, _npy) for path in sorted(place.glob("*.npy")) if _is_ours(path.stem)
        }
    elif not place.exists():
        raise UserError(f"{place}: no such file or directory; {ACCEPTED}")
    elif place.suffix in HDF5:
        found = _opened(place, _hdf5)
    elif place.suffix == ".npz":
        found = _opened(place, lambda path: {n: a for n, a in np.load(path).items() if _is_ours(n)})
    else:
        raise UserError(f"{place}: found a {place.suffix or 'plain'} file; {ACCEPTED}")
    if "train" not in found:
        raise UserError(f"{place}: found no array named train; {ACCEPTED}")
    for name in found.keys() & set(SPLITS):
        checked(f"{place}: {name}", found[name])
    return found


def split_examples(
    arrays: dict[str, Any], *, normalize: Normalize, test_fraction: float
) -> tuple[Examples, Examples]:
    """Return the training and the test examples; without a test array a hash of their place decides.

    Args:
      arrays: the arrays by name, `train` and perhaps `test`.
      normalize: the normalisation; 8-bit images without one keep their type.
      test_fraction: the approximate fraction of the examples in the test split, if there is no test array.

    Raises:
      UserError: if the arrays differ in shape, or have too few examples.
    """
    train, test = arrays["train"], arrays.get("test")
    keeps_type = is_image(train, normalize)
    if test is None:
        in_test = np.array([_hash(number) < test_fraction for number in range(len(train))])
        if in_test.all() or not in_test.any():
            in_test = np.arange(len(train)) == len(train) - 1
        if len(train) < 2:
            raise UserError(f"train: found {len(train)} example; accepted: at least 2, or an array test")
        parts = ((train, np.flatnonzero(~in_test).tolist()), (train, np.flatnonzero(in_test).tolist()))
    else:
        if test.shape[1:] != train.shape[1:]:
            raise UserError(
                f"test: found examples of the shape {test.shape[1:]}; accepted: the shape in train, "
                f"{train.shape[1:]}"
            )
        parts = ((train, range(len(train))), (test, range(len(test))))
    first, second = (Examples(*part, keeps_type=keeps_type) for part in parts)
    return first, second


def is_image(array: Any, normalize: Normalize) -> bool:
    """Return whether examples are images of 8 bits that keep their values."""
    return array.dtype == np.uint8 and normalize == "none" and len(array.shape) > 2


def measured(train: Examples, test: Examples, normalize: Normalize) -> Facts:
    """Return the facts of the training examples, from one pass over each split.

    Raises:
      UserError: if numbers aren't finite, or a channel is constant.
    """
    shape = train[0].shape
    moments = _Moments.of(train, "train")
    of_test = _Moments.of(test, "test")
    if train[0].dtype == np.uint8:
        largest = max(moments.high.max(), of_test.high.max())
        return Facts(shape, num_values=int(largest) + 1)
    if normalize == "none":
        return Facts(shape)
    std = np.sqrt(moments.variance)
    kinds = {"standard": (moments.mean, std), "range": (moments.low, moments.high - moments.low)}
    offset, scale = kinds[normalize]
    # float32 holds differences of this size with two digits.
    for channel in np.flatnonzero(scale <= 1e-5 * np.maximum(abs(moments.low), abs(moments.high))):
        low, high = moments.low[channel], moments.high[channel]
        raise UserError(
            f"train: channel {channel} is constant in float32, from {low:.7g} to {high:.7g}; leave it out, "
            "or subtract its mean"
        )
    return Facts(shape, None, *(tuple(float(f"{v:.9g}") for v in values) for values in (offset, scale)))


def checked(name: str, array: Any) -> Any:
    """Return an array of real numbers of an accepted shape; refuse others."""
    shape, kind = array.shape, np.dtype(array.dtype).kind
    if len(shape) not in (2, 3, 4) or 0 in shape or kind not in "fiub":
        raise UserError(
            f"{name}: found {array.dtype} of the shape {tuple(shape)}; accepted: real numbers, {SHAPES}"
        )
    return array


@dataclasses.dataclass(frozen=True)
class _Moments:
    """Moments of each channel."""

    mean: np.ndarray
    variance: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, examples: Examples, split: str) -> "_Moments":
        """Compute them in float64, by Chan's rule for the moments of a union."""
        count, mean, squares = 0, np.array(0.0), np.array(0.0)
        low, high = np.array(np.inf), np.array(-np.inf)
        for first, chunk in _numbered(examples.chunks()):
            axes = tuple(range(chunk.ndim - 1)) if chunk.ndim > 2 else (0,)
            is_finite = np.isfinite(chunk.reshape(len(chunk), -1)).all(axis=1)
            if not is_finite.all():
                number = examples.numbers[first + int(np.argmin(is_finite))]
                raise UserError(f"{split}: example {number} holds numbers that aren't finite; leave it out")
            more, of_chunk = chunk.size // chunk.shape[-1], chunk.mean(axes, dtype=np.float64)
            squares = squares + np.square(chunk - of_chunk, dtype=np.float64).sum(axes)
            squares = squares + np.square(of_chunk - mean) * count * more / (count + more)
            mean = mean + (of_chunk - mean) * more / (count + more)
            low, high = np.minimum(low, chunk.min(axes)), np.maximum(high, chunk.max(axes))
            count += more
        return cls(mean, squares / count, low, high)


def _numbered(chunks: Iterator[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    first = 0
    for chunk in chunks:
        yield first, chunk
        first += len(chunk)


def _opened(path: Path, open_array: Callable[[Path], Any]) -> Any:
    try:
        return open_array(path)
    except UserError:
        raise
    except Exception as error:  # damaged files raise many types
        raise UserError(f"{path}: can't be read as an array ({' '.join(str(error).split())})") from error


def _is_ours(name: str) -> bool:
    """Return whether a name is a split's, or of its conditions: train_condition, or train_condition_NAME."""
    return re.fullmatch("(train|test)(_condition(_.+)?)?", name) is not None


def _npy(path: Path) -> Any:
    file = NpyFile(path)
    return file if path.stem in SPLITS or len(file.shape) > 2 else np.load(path)


def _hdf5(path: Path) -> dict[str, Any]:
    try:
        import h5py  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f"{path}: needs the package h5py: pip install -e '.[hdf5]'") from error
    file = h5py.File(path, "r")
    return {name: file[name] for name in file if _is_ours(name)}


def _hash(number: int) -> float:
    """Return a number in [0, 1] that depends only on the place."""
    return int.from_bytes(hashlib.sha256(str(number).encode()).digest()[:8]) / 2**64
