"""Conditions of the networks: a class, a vector, an image beside x, or several of them by name.

A condition may be missing. Then `condition=None`, or a part is null: a class of −1, or a vector or an image
with NaN. So one batch may have examples with and without a condition, and a part may be left out alone.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import FrozenDict
from jax import Array
from jax.core import Tracer
from jaxtyping import Bool, Float, Int

from ncsn_jax.models.layers import Images

NULL_CLASS = -1


@dataclasses.dataclass(frozen=True)
class Classes:
    """A class, one integer of 0 … K − 1; −1 is null."""

    num_classes: int

    def shape(self, x: Array) -> tuple[int, ...]:
        """Return the shape of a batch of classes, `(batch,)`."""
        return x.shape[:1]


@dataclasses.dataclass(frozen=True)
class Vector:
    """A vector of numbers of order one; with NaN in it, it is null."""

    size: int

    def shape(self, x: Array) -> tuple[int, ...]:
        """Return the shape of a batch of vectors, `(batch, size)`."""
        return (x.shape[0], self.size)


@dataclasses.dataclass(frozen=True)
class Image:
    """An image of the height and width of x, of numbers of order one; with NaN in it, it is null."""

    channels: int

    def shape(self, x: Array) -> tuple[int, ...]:
        """Return the shape of a batch of images, `(batch, height, width, channels)`."""
        return (*x.shape[:-1], self.channels)


PartKind = Classes | Vector | Image
ConditionKind = PartKind | Mapping[str, PartKind]
"""The kind of condition that a network takes: one part, or several by name."""


def hashable(conditions: ConditionKind | None) -> ConditionKind | None:
    """Return the kind of condition as a network's field, which must hash."""
    return FrozenDict(conditions) if isinstance(conditions, Mapping) else conditions


class GivenPart(NamedTuple):
    """One part of the conditions of a batch.

    Attributes:
      name: its name in the network.
      kind: its kind.
      values: its values; zeros where they are null.
      is_given: whether each example's value isn't null, `(batch,)`.
    """

    name: str
    kind: PartKind
    values: Array
    is_given: Bool[Array, " batch"]


def parts_of(conditions: ConditionKind | None, condition: Any, x: Array) -> list[GivenPart]:
    """Return the parts of a batch of conditions.

    Args:
      conditions: the kind that the network takes; None if it takes none.
      condition: an array, or a dictionary of arrays, with an axis of the batch; None is null in every part.
      x: the batch of examples.

    Raises:
      ValueError: if the network takes no condition, or one of other parts, shapes, types or classes.
    """
    if conditions is None:
        if condition is None:
            return []
        raise ValueError("condition: this network takes none; accepted: None, or a network with `conditions`")
    is_named = isinstance(conditions, Mapping)
    kinds = dict(conditions) if is_named else {"": conditions}
    if condition is None:
        return [_null(_name(name), kind, x) for name, kind in sorted(kinds.items())]
    if not is_named:
        condition = {"": condition}
    if not isinstance(condition, Mapping) or condition.keys() != kinds.keys():
        found = sorted(condition) if isinstance(condition, Mapping) else type(condition).__name__
        raise ValueError(f"condition: found {found}; accepted: a dictionary of {sorted(kinds)}")
    return [_given(name, kind, condition[name], x) for name, kind in sorted(kinds.items())]


def _name(name: str) -> str:
    return f"condition_{name}" if name else "condition"


def _null(name: str, kind: PartKind, x: Array) -> GivenPart:
    dtype = jnp.int32 if isinstance(kind, Classes) else x.dtype
    return GivenPart(name, kind, jnp.zeros(kind.shape(x), dtype), jnp.zeros(x.shape[:1], bool))


def null_like(leaf: Any) -> Any:
    """Return the null condition of the shape and type of an array: −1, or NaN."""
    leaf = signed(leaf)
    is_class = jnp.issubdtype(leaf.dtype, jnp.integer)
    return jnp.full_like(leaf, NULL_CLASS if is_class else jnp.nan)


def signed(leaf: Any) -> Array:
    """Return integers as int32, which −1 fits in; other arrays as they are."""
    leaf = jnp.asarray(leaf)
    return leaf.astype(jnp.int32) if jnp.issubdtype(leaf.dtype, jnp.integer) else leaf


def _given(name: str, kind: PartKind, values: Any, x: Array) -> GivenPart:
    place = f"condition[{name!r}]" if name else "condition"
    if isinstance(values, Mapping):
        raise ValueError(f"{place}: found a dictionary of {sorted(values)}; accepted: one array, for {kind}")
    values = signed(values)
    expected, shape = jnp.integer if isinstance(kind, Classes) else jnp.floating, kind.shape(x)
    if values.shape != shape or not jnp.issubdtype(values.dtype, expected):
        raise ValueError(
            f"{place}: found {values.dtype} of the shape {values.shape} for a batch; accepted: "
            f"{expected.__name__} numbers of the shape {shape}, for {kind}"
        )
    if isinstance(kind, Classes) and not isinstance(values, Tracer):
        require_classes(np.asarray(values), kind.num_classes, place)
    is_null = (values == NULL_CLASS) if isinstance(kind, Classes) else jnp.isnan(values)
    is_given = ~jnp.any(is_null.reshape(len(values), -1), axis=1)
    zeros = jnp.zeros_like(values)
    return GivenPart(_name(name), kind, jnp.where(by_example(is_given, values), values, zeros), is_given)


def by_example(flags: Bool[Array, " batch"], values: Array) -> Array:
    """Return flags of examples with the axes of values."""
    return flags.reshape(-1, *[1] * (values.ndim - 1))


def require_classes(values: Int[np.ndarray, "..."], num_classes: int, place: str) -> None:
    """Check classes, which may be null.

    Raises:
      ValueError: if there is no such class.
    """
    for value in values[(values < NULL_CLASS) | (values >= num_classes)].ravel()[:1]:
        raise ValueError(f"{place}={value}: no such class; accepted: 0 to {num_classes - 1}, or -1 for none")


class ConditionEmbedding(nn.Module):
    """Sum of the embeddings of classes and vectors, `(batch, features)`; it ignores images.

    A class is a learned row of a table, whose last row is the null condition. A vector is mapped linearly,
    together with an indicator; if it is null, they are zeros.
    """

    features: int

    @nn.compact
    def __call__(self, given: list[GivenPart]) -> Float[Array, "batch features"] | float:
        total = 0.0
        for part in given:
            if isinstance(part.kind, Classes):
                table = nn.Embed(part.kind.num_classes + 1, self.features, name=part.name)
                total = total + table(class_rows(part))
            elif isinstance(part.kind, Vector):
                total = total + nn.Dense(self.features, name=part.name)(_with_indicator(part))
        return total


def class_rows(part: GivenPart) -> Int[Array, " batch"]:
    """Return the row of each class in a table of K + 1 rows, whose last one is the null condition."""
    assert isinstance(part.kind, Classes)
    return jnp.where(part.is_given, part.values, part.kind.num_classes)


def beside(image: Images, given: list[GivenPart]) -> Images:
    """Return an image with the condition's images, and an indicator for each, as further channels."""
    images = [_with_indicator(part) for part in given if isinstance(part.kind, Image)]
    return jnp.concatenate([image, *(each.astype(image.dtype) for each in images)], axis=-1)


def _with_indicator(part: GivenPart) -> Array:
    """Return values with a last channel of ones, or zeros where they are null."""
    flags = by_example(part.is_given, part.values).astype(part.values.dtype)
    indicator = jnp.broadcast_to(flags, (*part.values.shape[:-1], 1))
    return jnp.concatenate([part.values, indicator], axis=-1)
