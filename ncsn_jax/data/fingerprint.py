"""The fingerprint of a dataset, which reveals a different dataset or changed files."""

import hashlib
from typing import Any

import numpy as np

from ncsn_jax.data.datasets import Dataset, Source

NUM_READ = 1_000
"""Number of images per split to read if they are not in memory."""


def fingerprint(dataset: Dataset) -> dict[str, Any]:
    """Return the number of examples and a checksum of each split.

    The checksum covers all images of a split in memory, and otherwise 1,000 evenly spaced images. Points
    have no checksum, because they are drawn, and processors may round them differently.
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
