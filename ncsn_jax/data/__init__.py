"""Images, points and arrays: datasets by name, batches, and the preprocessing on the device."""

# ruff: noqa: E402
from ncsn_jax.extras import require_app

require_app(__name__)

from ncsn_jax.data.conditions import ConditionalExamples, Conditions, drop_condition
from ncsn_jax.data.datasets import ARRAYS, Dataset, Source, describe, facts_of, from_arrays, load
from ncsn_jax.data.fingerprint import fingerprint
from ncsn_jax.data.pipeline import Batch, evaluation_batches, given_batches, training_batches
from ncsn_jax.data.preprocessing import (
    DatasetInfo,
    as_bytes,
    dequantize,
    expected_image,
    preprocessing,
    quantize,
    random_flip,
)
from ncsn_jax.data.selected_images import chosen_images, stored_images
from ncsn_jax.data.settings import ConditionFacts, Data

__all__ = [
    "ARRAYS",
    "Batch",
    "ConditionFacts",
    "ConditionalExamples",
    "Conditions",
    "Data",
    "Dataset",
    "DatasetInfo",
    "Source",
    "as_bytes",
    "chosen_images",
    "dequantize",
    "describe",
    "drop_condition",
    "evaluation_batches",
    "expected_image",
    "facts_of",
    "fingerprint",
    "from_arrays",
    "given_batches",
    "load",
    "preprocessing",
    "quantize",
    "random_flip",
    "stored_images",
    "training_batches",
]
