"""Images and points: datasets by name, batches, and the preprocessing on the device."""

from ncsn_jax.data.datasets import Dataset, DatasetInfo, describe, has_labels, load, load_labels
from ncsn_jax.data.fingerprint import fingerprint
from ncsn_jax.data.pipeline import Batch, evaluation_batches, training_batches
from ncsn_jax.data.preprocessing import (
    TRANSFORMS,
    Transform,
    as_bytes,
    dequantize,
    expected_image,
    preprocessing,
    quantize,
    random_flip,
)
from ncsn_jax.data.selected_images import chosen_images, stored_images

__all__ = [
    "TRANSFORMS",
    "Batch",
    "Dataset",
    "DatasetInfo",
    "Transform",
    "as_bytes",
    "chosen_images",
    "dequantize",
    "describe",
    "evaluation_batches",
    "expected_image",
    "fingerprint",
    "has_labels",
    "load",
    "load_labels",
    "preprocessing",
    "quantize",
    "random_flip",
    "stored_images",
    "training_batches",
]
