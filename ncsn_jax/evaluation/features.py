"""Features of images, in which distributions are compared."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped


class Extracted(NamedTuple):
    """What is extracted of n examples.

    Attributes:
      features: `(n, D)`.
      probabilities: of K classes, `(n, K)`; None where nothing is classified.
    """

    features: Float[np.ndarray, "n D"]
    probabilities: Float[np.ndarray, "n K"] | None

    def rows(self, which: slice | Int[np.ndarray, " m"]) -> "Extracted":
        """What is extracted of some of them."""
        probabilities = self.probabilities
        return Extracted(self.features[which], None if probabilities is None else probabilities[which])


def joined(parts: Sequence[Extracted]) -> Extracted:
    """What is extracted of several sets, one after the other."""
    features = np.concatenate([part.features for part in parts])
    probabilities = [part.probabilities for part in parts if part.probabilities is not None]
    return Extracted(features, np.concatenate(probabilities) if probabilities else None)


Extract = Callable[[Shaped[np.ndarray, "n *event"]], Extracted]
"""From images, 8 bits a channel (or points, as they are), to what is extracted of each."""


class Features(NamedTuple):
    """A map from images to features; users may bring their own.

    Attributes:
      name: as results are labelled.
      fingerprint: identifies the map and its weights: under another one, all is computed anew.
      extract: the map.
      description: what a user should know of it, such as a classifier's accuracy.
    """

    name: str
    fingerprint: str
    extract: Extract
    description: str = ""


def _as_they_are(x: Shaped[np.ndarray, "n *event"]) -> Extracted:
    values = x.astype(np.float32).reshape(len(x), -1)
    return Extracted(values / 255 if x.dtype == np.uint8 else values, None)


PIXELS = Features("pixels", "pixels", _as_they_are)
"""Pixels in [0, 1], or the coordinates of points."""


def in_batches(extract: Extract, batch_size: int) -> Extract:
    """The map, for any number of examples, by batches of one shape; the last one is padded, and cut again."""

    def extracted(x):
        parts = []
        for first in range(0, len(x), batch_size):
            batch = x[first : first + batch_size]
            padded = np.concatenate([batch, np.repeat(batch[:1], batch_size - len(batch), axis=0)])
            parts.append(extract(padded).rows(slice(len(batch))))
        return joined(parts)

    return extracted
