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
from jaxtyping import Float, Int

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


Part = Classes | Vector | Image
Conditions = Part | Mapping[str, Part]
"""The kind of condition that a network takes: one part, or several by name."""


def hashable(conditions: Conditions | None) -> Conditions | None:
    """Return the kind of condition as a network's field, which must hash."""
    return FrozenDict(conditions) if isinstance(conditions, Mapping) else conditions


class Given(NamedTuple):
    """Values of one part for a batch: its name in the network, its kind, and its values, perhaps null."""

    name: str
    kind: Part
    values: Array


def parts_of(conditions: Conditions | None, condition: Any, x: Array) -> list[Given]:
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
        condition = {name: _null(kind, x) for name, kind in kinds.items()}
    elif not is_named:
        condition = {"": condition}
    if not isinstance(condition, Mapping) or condition.keys() != kinds.keys():
        found = sorted(condition) if isinstance(condition, Mapping) else type(condition).__name__
        raise ValueError(f"condition: found {found}; accepted: a dictionary of {sorted(kinds)}")
    return [
        Given(f"condition_{name}" if name else "condition", kind, _checked(name, kind, condition[name], x))
        for name, kind in sorted(kinds.items())
    ]


def _null(kind: Part, x: Array) -> Array:
    if isinstance(kind, Classes):
        return jnp.full(kind.shape(x), NULL_CLASS)
    return jnp.full(kind.shape(x), jnp.nan, x.dtype)


def null_like(leaf: Any) -> Any:
    """Return the null condition of the shape and type of an array: −1, or NaN."""
    leaf = jnp.asarray(leaf)
    is_class = jnp.issubdtype(leaf.dtype, jnp.integer)
    return jnp.full_like(leaf, NULL_CLASS if is_class else jnp.nan)


def _checked(name: str, kind: Part, values: Any, x: Array) -> Array:
    place = f"condition[{name!r}]" if name else "condition"
    if isinstance(values, Mapping):
        raise ValueError(f"{place}: found a dictionary of {sorted(values)}; accepted: one array, for {kind}")
    values = jnp.asarray(values)
    expected, shape = jnp.integer if isinstance(kind, Classes) else jnp.floating, kind.shape(x)
    if values.shape != shape or not jnp.issubdtype(values.dtype, expected):
        raise ValueError(
            f"{place}: found {values.dtype} of the shape {values.shape[1:]}; accepted: {expected.__name__} "
            f"numbers of the shape {shape[1:]}, for {kind}"
        )
    if isinstance(kind, Classes) and not isinstance(values, Tracer):
        require_classes(np.asarray(values), kind.num_classes, place)
    return values


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
    def __call__(self, given: list[Given]) -> Float[Array, "batch features"] | float:
        total = 0.0
        for name, kind, values in given:
            if isinstance(kind, Classes):
                table = nn.Embed(kind.num_classes + 1, self.features, name=name)
                total = total + table(class_rows(kind, values))
            elif isinstance(kind, Vector):
                total = total + nn.Dense(self.features, name=name)(_with_indicator(values))
        return total


def class_rows(kind: Classes, values: Int[Array, " batch"]) -> Int[Array, " batch"]:
    """Return the row of each class in a table of K + 1 rows, whose last one is the null condition."""
    return jnp.where(values == NULL_CLASS, kind.num_classes, values)


def beside(image: Images, given: list[Given]) -> Images:
    """Return an image with those of the condition, and an indicator for each, as further channels."""
    images = [_with_indicator(values) for _, kind, values in given if isinstance(kind, Image)]
    return jnp.concatenate([image, *(each.astype(image.dtype) for each in images)], axis=-1)


def _with_indicator(values: Array) -> Array:
    """Return values with a last channel of ones; zeros where an example's values are null."""
    axes = tuple(range(1, values.ndim))
    is_given = ~jnp.any(jnp.isnan(values), axis=axes, keepdims=True)
    indicator = jnp.broadcast_to(is_given, (*values.shape[:-1], 1)).astype(values.dtype)
    return jnp.concatenate([jnp.where(is_given, values, 0), indicator], axis=-1)
