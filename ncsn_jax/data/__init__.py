"""Images and points: datasets by name, batches, and the preprocessing on the device."""

from ncsn_jax.data.chosen import chosen_images
from ncsn_jax.data.datasets import Dataset, DatasetInfo, describe, load
from ncsn_jax.data.pipeline import Batch, evaluation_batches, training_batches
from ncsn_jax.data.preprocessing import (
    TRANSFORMS,
    Transform,
    dequantize,
    expected_image,
    preprocessing,
    random_flip,
)

__all__ = [
    "TRANSFORMS",
    "Batch",
    "Dataset",
    "DatasetInfo",
    "Transform",
    "chosen_images",
    "dequantize",
    "describe",
    "evaluation_batches",
    "expected_image",
    "load",
    "preprocessing",
    "random_flip",
    "training_batches",
]
