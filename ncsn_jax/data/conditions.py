"""Conditions of examples: classes, vectors and images that are stored beside x."""

import csv
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from ncsn_jax.data.arrays import Examples, measured
from ncsn_jax.data.settings import ConditionFacts, Data
from ncsn_jax.models.conditions import null_like
from ncsn_jax.runtime.errors import ArgumentError, UserError

COLUMNS = "columns.csv"
ONLY = "condition"
"""Name of a condition's part, if it is the only one and has no name of its own."""


class Part(NamedTuple):
    """One part of all examples' conditions, as stored.

    Attributes:
      train: a class, a vector or an image of each training example.
      test: the same of the test examples.
      names: the names of the classes, or of a vector's entries.
    """

    train: Any
    test: Any
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Conditions:
    """The conditions of one split: an example's is an array, or a dictionary of arrays.

    Attributes:
      stored: the parts by name, as stored.
      facts: the facts of each part, of the training split.
    """

    stored: Mapping[str, Any]
    facts: Mapping[str, ConditionFacts]

    def __len__(self) -> int:
        return len(next(iter(self.stored.values())))

    def __getitem__(self, index: SupportsIndex) -> Any:
        """Return the condition of one example, as the network takes it."""
        return self._unnamed(
            {name: prepared(self.stored[name][index], facts) for name, facts in self.facts.items()}
        )

    def rows(self, numbers: Int[np.ndarray, "*numbers"], *, as_stored: bool = False) -> Any:
        """Return the conditions of some examples, with the axes of the numbers in front.

        Args:
          numbers: the examples' numbers.
          as_stored: whether to return them in their own units, instead of the network's.
        """

        def of_part(name):
            values = np.stack([np.asarray(self.stored[name][int(number)]) for number in numbers.ravel()])
            values = values if as_stored else prepared(values, self.facts[name])
            return values.reshape(*numbers.shape, *values.shape[1:])

        return self._unnamed({name: of_part(name) for name in self.facts})

    def _unnamed(self, found: dict[str, Any]) -> Any:
        return found[ONLY] if found.keys() == {ONLY} else found


class ConditionalExamples:
    """Examples with conditions: dictionaries of `x` and `condition`.

    Attributes:
      x: the examples without conditions.
      conditions: their conditions.
    """

    def __init__(self, x: Any, conditions: Conditions):
        self.x, self.conditions = x, conditions

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        return {"x": self.x[index], "condition": self.conditions[index]}


def prepared(values: Any, facts: ConditionFacts) -> np.ndarray:
    """Return classes as they are, and numbers with mean 0 and standard deviation 1, as for a network.

    Args:
      values: stored values of one or more examples; their last axis is of entries or channels.
      facts: the facts of the part.
    """
    if facts.kind == "class":
        return np.asarray(values, np.int32)
    return ((np.asarray(values) - np.array(facts.offset)) / np.array(facts.scale)).astype(np.float32)


def drop_condition(probability: float) -> Callable[[Any, Any], Any]:
    """Return a random function that makes an example's condition null with a probability.

    A network that is trained so has a score without a condition, too, which classifier-free guidance needs.

    Args:
      probability: the probability.

    Returns:
      A function of a key and an example, a dictionary with `condition`. Classes become −1, and numbers NaN
      (`ncsn_jax.models.conditions`).
    """

    def dropped(key, example):
        is_dropped = jax.random.bernoulli(key, probability)
        condition = jax.tree.map(
            lambda leaf: jnp.where(is_dropped, null_like(leaf), leaf), example["condition"]
        )
        return {**example, "condition": condition}

    return dropped


def with_facts(
    settings: Data, parts: Mapping[str, Part], shape: tuple[int, ...], in_memory_bytes: int
) -> list[Conditions]:
    """Return the conditions of the training and the test split, with the settings' facts or measured ones.

    Args:
      settings: the dataset's settings; facts that were measured before must fit the parts.
      parts: the parts by name.
      shape: the shape of x.
      in_memory_bytes: the largest size of a split of images that becomes an array.

    Raises:
      UserError: if the parts don't fit x, or differ from the settings' facts.
    """
    known = settings.conditions
    found = {name: _facts(name, part, shape, known.get(name)) for name, part in parts.items()}
    if known:
        _require_same(settings, found)
    parts = {name: _kept_in_memory(part, in_memory_bytes) for name, part in parts.items()}
    stored = ({name: part[split] for name, part in parts.items()} for split in (0, 1))
    return [Conditions(of_split, known or found) for of_split in stored]


def _facts(name: str, part: Part, shape: tuple[int, ...], known: ConditionFacts | None) -> ConditionFacts:
    first = np.asarray(part.train[0])
    if first.ndim == 0:
        num_classes = len(part.names) or 1 + int(max(np.max(part.train), np.max(part.test)))
        if min(np.min(part.train), np.min(part.test)) < 0:
            raise UserError(f"{name}: found a negative class; accepted: integers from 0")
        num_used = len(np.unique(np.concatenate([part.train, part.test])))
        if num_classes > max(1000, 10 * num_used):
            raise UserError(
                f"{name}: found {num_used} classes with numbers up to {num_classes - 1}; accepted: numbers "
                "from 0 without gaps"
            )
        names = part.names or tuple(map(str, range(num_classes)))
        return ConditionFacts(kind="class", size=num_classes, names=names)
    if first.ndim == 1:
        mean, std = np.mean(part.train, 0, np.float64), np.std(part.train, 0, np.float64)
        entries = part.names or tuple(map(str, range(len(first))))
        for split in part[:2]:
            for row, column in np.argwhere(~np.isfinite(split))[:1]:
                raise UserError(f"{name}: column {entries[column]}: example {row} is not a finite number")
        for column in np.flatnonzero(std <= 1e-6 * np.abs(mean)):
            raise UserError(f"{name}: column {entries[column]} is constant, {mean[column]:g}; leave it out")
        return ConditionFacts(
            kind="vector", size=len(first), names=part.names, offset=_digits(mean), scale=_digits(std)
        )
    if first.shape[:2] != shape[:2]:
        raise UserError(
            f"{name}: found images of {first.shape[0]}×{first.shape[1]} pixels; accepted: the height and the "
            f"width of the examples, {shape}"
        )
    if known is not None:  # measuring reads all images
        return known.model_copy(update={"kind": "image", "size": first.shape[-1]})
    try:
        of_images = measured(part.train, part.test, "standard")
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    return ConditionFacts(kind="image", size=first.shape[-1], offset=of_images.offset, scale=of_images.scale)


def _digits(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.9g}") for value in values)


def _require_same(settings: Data, found: Mapping[str, ConditionFacts]) -> None:
    """Check that the conditions are the ones that the run began with."""
    known = settings.conditions
    if found.keys() != known.keys():
        raise ArgumentError(
            f"condition={settings.condition!r}: found the parts {sorted(found)}; accepted: the parts "
            f"when the run began, {sorted(known)}"
        )
    for name, facts in found.items():
        old = known[name]
        if facts.names != old.names or (facts.kind, facts.size) != (old.kind, old.size):
            changed = sorted({*facts.names} ^ {*old.names}) or [f"{facts.kind} of {facts.size}"]
            words = "classes" if facts.kind == "class" else "columns"
            raise ArgumentError(
                f"condition={settings.condition!r}: the {words} have changed since training began "
                f"({', '.join(changed[:5])}); accepted: {', '.join(old.names[:20]) or old.size}"
            )


def classes_of_directories(directory: Path, splits: Sequence[list[str]]) -> Part:
    """Return the class of each image of a folder: the sub-directory that it lies in.

    Args:
      directory: the folder.
      splits: the images of each split, as paths inside the folder.

    Raises:
      UserError: if an image lies in no sub-directory.
    """
    for name in (name for split in splits for name in split if "/" not in name):
        raise UserError(
            f"{directory / name}: found an image outside of the classes; accepted: one sub-directory for "
            "each class"
        )
    of = [[name.partition("/")[0] for name in split] for split in splits]
    names = tuple(sorted({*of[0], *of[1]}))
    number = {name: i for i, name in enumerate(names)}
    train, test = (np.array([number[name] for name in split], np.int32) for split in of)
    return Part(train, test, names)


def columns_of_images(directory: Path, splits: Sequence[list[str]], expected: Sequence[str] = ()) -> Part:
    """Return the numbers of each image of a folder, from its `columns.csv`.

    The first column has the path of each image inside the folder, and the others its numbers.

    Args:
      directory: the folder.
      splits: the images of each split.
      expected: the columns to read; empty for all.

    Raises:
      UserError: if the file, an image's row or a column is missing, or a value is no number.
    """
    path = directory / COLUMNS
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = csv.reader(file)
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        raise UserError(
            f"{path}: can't be read ({error}); accepted: a CSV with a header, the images' paths in its first "
            "column, and numbers in others"
        ) from error
    names = list(expected or header[1:])
    for name in names:
        if name not in header[1:]:
            raise UserError(f"{path}: column {name} is missing; found {', '.join(header[1:])}")
    if not names:
        raise UserError(f"{path}: found no column of numbers; accepted: the images' paths, then numbers")
    places, of_image = [header.index(name, 1) for name in names], {row[0]: row for row in rows if row}

    def numbers(image: str) -> list[float]:
        if image not in of_image:
            raise UserError(f"{path}: found no row for {image}; accepted: one for each image")
        row = of_image[image]
        try:
            return [float(row[place]) for place in places]
        except (ValueError, IndexError):
            raise UserError(
                f"{path}: {image}: found {row[1:]}; accepted: {len(header) - 1} numbers"
            ) from None

    train, test = (np.array([numbers(image) for image in split], np.float32) for split in splits)
    return Part(train, test, tuple(names))


def conditions_of_arrays(found: Mapping[str, Any], numbers: Sequence[Sequence[int]]) -> dict[str, Part]:
    """Return the conditions of arrays: a part for each array `train_condition` or `train_condition_NAME`.

    Integers `(n,)` are classes; numbers `(n,)` and `(n, D)` vectors; `(n, height, width)` and
    `(n, height, width, channels)` images.

    Args:
      found: the arrays by name.
      numbers: the places of the training and the test examples in their arrays.

    Raises:
      UserError: if there is none, an array of the test split is missing, or their lengths differ.
    """
    parts = {}
    for name in (name for name in found if name.startswith("train_condition")):
        of_test = name.replace("train", "test", 1) if "test" in found else name
        if of_test not in found:
            raise UserError(f"{of_test}: no such array; accepted: one beside {name}")
        short = name.removeprefix("train_condition").removeprefix("_") or ONLY
        train, test = (
            _of_array(n, found[n], places, len(found[n.partition("_")[0]]))
            for n, places in zip((name, of_test), numbers, strict=True)
        )
        parts[short] = Part(train, test, ())
    if not parts:
        raise ArgumentError(
            "condition='file': found no array train_condition; accepted: train_condition.npy beside "
            "train.npy, or train_condition_NAME.npy for each part of a condition"
        )
    if len(parts) > 1 and ONLY in parts:
        raise UserError(f"train_condition: found {sorted(parts)}; accepted: either one array, or named ones")
    if "file" in parts:  # an argument of numpy.savez
        raise UserError("train_condition_file: a part can't have the name file; accepted: another name")
    return parts


def _of_array(name: str, array: Any, places: Sequence[int], length: int) -> Any:
    kind, ndim = np.dtype(array.dtype).kind, len(array.shape)
    if kind not in "fiub" or ndim not in (1, 2, 3, 4) or 0 in array.shape:
        raise UserError(
            f"{name}: found {array.dtype} of the shape {tuple(array.shape)}; accepted: classes (n,), vectors "
            "(n, D) or images (n, height, width, channels)"
        )
    if len(array) != length:
        raise UserError(f"{name}: found {len(array)} conditions for {length} examples")
    if ndim > 2:
        return Examples(array, places, keeps_type=False)
    values = np.asarray(array)[np.asarray(places)]
    if ndim == 1 and kind in "iub":
        return values.astype(np.int32)
    return values.astype(np.float32).reshape(len(values), -1)


def _kept_in_memory(part: Part, limit: int) -> Part:
    """Return a part whose images are arrays, if each split has at most `limit` bytes."""
    train, test = (s.in_memory_if_small(limit) if isinstance(s, Examples) else s for s in part[:2])
    return Part(train, test, part.names)
