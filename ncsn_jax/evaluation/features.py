"""Features of images, in which distributions are compared."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped


class Extracted(NamedTuple):
    """Features and class probabilities of n examples.

    Attributes:
      features: the features, `(n, D)`.
      probabilities: the probabilities of K classes, `(n, K)`; None if the map has no classes.
    """

    features: Float[np.ndarray, "n D"]
    probabilities: Float[np.ndarray, "n K"] | None

    def rows(self, which: slice | Int[np.ndarray, " m"]) -> "Extracted":
        """Return the features and probabilities of some examples."""
        probabilities = self.probabilities
        return Extracted(self.features[which], None if probabilities is None else probabilities[which])


def joined(parts: Sequence[Extracted]) -> Extracted:
    """Concatenate the features and probabilities of several sets."""
    features = np.concatenate([part.features for part in parts])
    probabilities = [part.probabilities for part in parts if part.probabilities is not None]
    return Extracted(features, np.concatenate(probabilities) if probabilities else None)


Extract = Callable[[Shaped[np.ndarray, "n *event"]], Extracted]
"""Map from images, 8 bits a channel, or from points to their features and probabilities."""


class Features(NamedTuple):
    """Map from images to features; users may define their own.

    Attributes:
      name: the label of the results.
      fingerprint: the identifier of the map and its weights; if it changes, results are recomputed.
      extract: the map.
      description: a remark for the reader of results, such as a classifier's accuracy.
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
    """Return a map of any number of examples, which calls the given map with padded batches of one shape."""

    def extracted(x):
        parts = []
        for first in range(0, len(x), batch_size):
            batch = x[first : first + batch_size]
            padded = np.concatenate([batch, np.repeat(batch[:1], batch_size - len(batch), axis=0)])
            parts.append(extract(padded).rows(slice(len(batch))))
        return joined(parts)

    return extracted
