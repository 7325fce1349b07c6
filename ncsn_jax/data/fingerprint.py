"""The fingerprint of examples, which reveals a different dataset or changed files."""

import hashlib
from typing import Any

import jax
import numpy as np

from ncsn_jax.data.conditions import ConditionalExamples
from ncsn_jax.data.datasets import Source
from ncsn_jax.data.points import Drawn

NUM_READ = 1_000
"""Number of examples per split to read if they are not in memory."""


def fingerprint(train: Source, test: Source | None) -> dict[str, Any]:
    """Return the shape of an example, and the number of examples and a checksum of each split.

    The checksum covers all examples of a split in memory, and otherwise 1,000 evenly spaced examples. The
    project's points have no checksum, because they are drawn, and processors may round them differently.

    Args:
      train: the training examples: arrays, or dictionaries of arrays.
      test: the test examples; None if there are none.
    """
    shape = jax.tree.map(lambda leaf: list(np.shape(leaf)), train[0])
    return {"shape": shape, "train": _of_split(train), "test": None if test is None else _of_split(test)}


def _of_split(examples: Source) -> dict[str, Any]:
    count = len(examples)
    if isinstance(examples, ConditionalExamples):
        parts = [examples.x, *examples.conditions.stored.values()]
        sums = [_of_split(part)["sha256"] for part in parts]
        return {"examples": count, "sha256": hashlib.sha256(str(sums).encode()).hexdigest()}
    if isinstance(examples, Drawn):
        return {"examples": count, "sha256": None}
    digest = hashlib.sha256()
    if isinstance(examples, np.ndarray):
        digest.update(np.ascontiguousarray(examples))
        return {"examples": count, "sha256": digest.hexdigest()}
    numbers = np.linspace(0, count - 1, min(count, NUM_READ)).astype(int)
    # One array of all examples after the other; an example at a time, which may be large.
    for leaf in range(len(jax.tree.leaves(examples[0]))):
        for number in numbers:
            digest.update(np.ascontiguousarray(jax.tree.leaves(examples[int(number)])[leaf]))
    return {"examples": count, "sha256": digest.hexdigest()}
