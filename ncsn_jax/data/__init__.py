"""Images and points: datasets by name, batches, and the preprocessing on the device."""

from ncsn_jax.data.datasets import Dataset, DatasetInfo, describe, load
from ncsn_jax.data.pipeline import Batch, evaluation_batches, training_batches
from ncsn_jax.data.preprocessing import dequantize, random_flip

__all__ = [
    "Batch",
    "Dataset",
    "DatasetInfo",
    "dequantize",
    "describe",
    "evaluation_batches",
    "load",
    "random_flip",
    "training_batches",
]
