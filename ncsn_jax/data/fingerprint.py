"""What tells a dataset from another one, or from itself after its files have changed."""

import hashlib
from typing import Any

import numpy as np

from ncsn_jax.data.datasets import Dataset, Source

NUM_READ = 1_000
"""How many images of a split are looked at where they are not in memory."""


def fingerprint(dataset: Dataset) -> dict[str, Any]:
    """The number of examples and a checksum of each split.

    The checksum is of all images that are in memory, and else of 1,000 images, evenly spaced. Points have
    none: their numbers are drawn, and another processor may round them otherwise.
    """
    return {
        "shape": list(dataset.info.shape),
        **{split: _fingerprint(getattr(dataset, split)) for split in ("train", "test")},
    }


def _fingerprint(examples: Source) -> dict[str, Any]:
    count = len(examples)
    if not isinstance(examples, np.ndarray):
        numbers = np.linspace(0, count - 1, min(count, NUM_READ)).astype(int)
        examples = np.stack([examples[int(i)] for i in numbers])
    if examples.dtype != np.uint8:
        return {"examples": count, "sha256": None}
    return {"examples": count, "sha256": hashlib.sha256(np.ascontiguousarray(examples)).hexdigest()}
