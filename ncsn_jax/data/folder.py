"""A folder of your own images, as the two splits of a dataset."""

import functools
import hashlib
import os
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal, SupportsIndex

import grain
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ncsn_jax.data.resizing import resized
from ncsn_jax.runtime.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
ACCEPTED = f"accepted: a directory of at least 2 images, {', '.join(SUFFIXES)}, in any subdirectories"


class FolderImages:
    """Images that are decoded on access; the next image replaces a skipped one."""

    def __init__(self, files: list[Path], decoder: "_Decoder"):
        self._files = files
        self._decoder = decoder

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: SupportsIndex) -> np.ndarray:
        count = len(self)
        first = range(count)[index]
        for i in range(first, first + count):
            image = self._decoder(self._files[i % count])
            if image is not None:
                return image
        raise UserError(f"none of {count} images can be decoded, such as {self._files[first]}; {ACCEPTED}")

    def any_decodes(self) -> bool:
        """Return whether at least one image can be decoded."""
        return any(self._decoder(file) is not None for file in self._files)

    def in_memory(self) -> np.ndarray:
        """Return the images in one array, without the skipped ones."""
        images = np.empty((len(self), *self[0].shape), np.uint8)
        count = 0
        # Grain decodes in threads, keeps the order and drops None.
        threads = os.cpu_count() or 1
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
        for image in grain.MapDataset.source(self._files).map(self._decoder).to_iter_dataset(options):
            images[count] = image
            count += 1
        return images[:count]


def load_folder(
    directory: str | Path,
    *,
    decode: Callable[[Image.Image], np.ndarray],
    test_fraction: float = 0.1,
    corrupt: Literal["error", "skip"] = "error",
    in_memory_bytes: int,
) -> tuple[np.ndarray | FolderImages, np.ndarray | FolderImages]:
    """Return the training and the test images of a directory and its subdirectories, sorted by path.

    Hidden files and directories are skipped, links are followed. A file's split depends only on its path
    inside the directory, except that each split has at least one image that decodes.

    Args:
      directory: the directory of the images.
      decode: a function from an opened image to uint8 pixels of one shape.
      test_fraction: the approximate fraction of the files in the test split.
      corrupt: the treatment of files that can't be decoded: an error, or a warning for each.
      in_memory_bytes: the largest size in decoded bytes of a split that becomes an array; images of a larger
        one are decoded on every access.

    Raises:
      UserError: if the directory can't be read or has fewer than 2 images that decode, if a file can't be
        decoded (unless it is skipped), or if images decode to different shapes.
    """
    directory = Path(directory)
    names, decoder = _image_names(directory), _Decoder(decode, corrupt)
    while len(names) >= 2:
        train, test = (
            FolderImages([directory / name for name in part], decoder)
            for part in _split(names, test_fraction)
        )
        if train.any_decodes() and test.any_decodes():
            return _in_memory_if_small(train, in_memory_bytes), _in_memory_if_small(test, in_memory_bytes)
        names = [name for name in names if directory / name not in decoder.skipped]
    which = "images that can be decoded" if decoder.skipped else "images found"
    raise UserError(f"{directory}: {which}: {len(names)}; {ACCEPTED}")


def names_of_splits(directory: str | Path, test_fraction: float) -> tuple[list[str], list[str]]:
    """Return the paths, inside the directory, of the images that `load_folder` returns if all decode."""
    return _split(_image_names(Path(directory)), test_fraction)


def read_images(
    path: str | Path,
    *,
    channels: Literal[1, 3],
    size: int | None = None,
    crop: int | None = None,
    fit: Literal["crop", "stretch", "pad"] = "crop",
) -> UInt8[np.ndarray, "n height width channels"]:
    """Return the images of a directory and its subdirectories, sorted by path, or the image of a file.

    Args:
      path: the directory or the file.
      channels: an argument of `ncsn_jax.data.resizing.resized`, like all that follow.
      size: the side to resize to; None keeps the size.
      crop: the side of the centre crop; None crops nothing.
      fit: the way to make an image square.

    Raises:
      UserError: if there are no images, one can't be decoded, or their shapes differ.
    """
    path = Path(path)
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = [path / name for name in _image_names(path)]
    else:
        raise UserError(f"{path}: no such file or directory")
    if not files:
        raise UserError(f"{path}: no images found; accepted: {', '.join(SUFFIXES)}, in any subdirectories")
    decode = functools.partial(resized, channels=channels, size=size, crop=crop, fit=fit)
    return FolderImages(files, _Decoder(decode, "error", advice="")).in_memory()


class _Decoder:
    """A function from files to arrays of one shape; returns None, with a warning, for skipped files."""

    def __init__(
        self,
        decode: Callable[[Image.Image], np.ndarray],
        corrupt: Literal["error", "skip"],
        advice: str = "; `corrupt=skip` skips such files",
    ):
        self._advice = advice
        self._decode = decode
        self._corrupt = corrupt
        self.skipped: dict[Path, str] = {}
        self._shape: tuple[int, ...] | None = None

    def __call__(self, file: Path) -> np.ndarray | None:
        if file in self.skipped:
            return None
        try:
            if file.exists() and not file.is_file():  # opening a pipe would block
                raise UserError("it is not a regular file")
            with Image.open(file) as image:
                image.load()
                pixels = self._decode(image)
        except Exception as error:  # Pillow raises many types: OSError, SyntaxError, struct.error, …
            return self._refuse(file, error)
        self._shape = self._shape or pixels.shape
        if pixels.shape != self._shape:
            raise UserError(
                f"{file}: found an image of shape {pixels.shape} among images of {self._shape}; accepted: "
                "one shape, for example after resizing"
            )
        return pixels

    def _refuse(self, file: Path, error: Exception) -> None:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        name = str(file) if str(file).isprintable() else repr(str(file))
        problem = f"{name}: can't be decoded ({kind}{' '.join(str(error).split())[:200]})"
        if self._corrupt == "error":
            raise UserError(f"{problem}{self._advice}") from error
        if self.skipped.setdefault(file, problem) is problem:  # only one thread warns
            # `warnings.warn` would add a line of source code.
            warnings.warn_explicit(f"{problem}; skipped", UserWarning, filename=__name__, lineno=0)


def _in_memory_if_small(images: FolderImages, limit: int) -> np.ndarray | FolderImages:
    return images.in_memory() if len(images) * images[0].nbytes <= limit else images


def _image_names(directory: Path) -> list[str]:
    """Return the sorted paths of a directory's images, relative to it."""
    names = []
    visited = set()
    for place, subdirectories, files in os.walk(directory, onerror=_unreadable, followlinks=True):
        if (real := os.path.realpath(place)) in visited:  # a link that leads back
            subdirectories.clear()
            continue
        visited.add(real)
        subdirectories[:] = sorted(name for name in subdirectories if not name.startswith("."))
        inside = Path(place).relative_to(directory)
        names += [(inside / name).as_posix() for name in files if _is_image(name)]
    return sorted(names)


def _unreadable(error: OSError):
    raise UserError(f"{error.filename}: can't be read ({error.strerror}); {ACCEPTED}") from error


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _split(names: list[str], test_fraction: float) -> tuple[list[str], list[str]]:
    """Split the names into training and test; the test split takes the smallest hashes."""
    count = sum(_hash(name) < test_fraction for name in names)
    count = min(max(count, 1), len(names) - 1)
    test = set(sorted(names, key=_hash)[:count])
    return [name for name in names if name not in test], [name for name in names if name in test]


def _hash(name: str) -> float:
    """Return a number in [0, 1] that depends only on the name."""
    # A name may be composed (é) on one file system and decomposed (e and ´) on another.
    composed = unicodedata.normalize("NFC", name)
    digest = hashlib.sha256(composed.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8]) / 2**64
