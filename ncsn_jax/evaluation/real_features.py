"""Features of real examples, with which samples are compared, and remarks on them."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped

from ncsn_jax import data
from ncsn_jax.config import Config
from ncsn_jax.data.datasets import Dataset, DatasetInfo, Source
from ncsn_jax.evaluation.against_real import Real
from ncsn_jax.evaluation.cached_parts import Arrays, Parts, compute_parts, fingerprint
from ncsn_jax.evaluation.classifier import Labelled, classifier
from ncsn_jax.evaluation.features import PIXELS, Extracted, Features, joined
from ncsn_jax.evaluation.inception import inception, is_installed
from ncsn_jax.runtime import processes
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.runtime.files import write_whole

REAL = "real.json"
PART = 1_000
"""Number of examples whose features are in one file."""

Examples = Shaped[np.ndarray, "n *event"]
"""Examples as stored: pixels 0 … n − 1 of images, or points."""


def kind_of_features(config: Config) -> Literal["classifier", "inception", "pixels"]:
    """Return the kind of features of a config; suggest the extra `fid` in the log if it is missing."""
    if config.evaluation.features != "auto":
        return config.evaluation.features
    if len(data.describe(config.data).shape) != 3:
        return "pixels"
    if data.has_labels(config.data):
        return "classifier"
    if is_installed():
        return "inception"
    processes.say(
        f"images of {config.data.name!r} are compared in pixels; pip install -e '.[fid]' for the features of "
        "Inception-v3, which FID and KID need"
    )
    return "pixels"


def real_features(
    directory: Path,
    config: Config,
    dataset: Dataset,
    of_dataset: dict[str, Any],
    given: Features | None = None,
) -> Real:
    """Return the features of all training and test examples, computed in parts once per map and dataset.

    `real.json` next to the parts holds the numbers of examples and remarks on the data and the features.

    Args:
      directory: the directory of the parts.
      config: the run's config; `evaluation` chooses the features.
      dataset: the examples.
      of_dataset: their `ncsn_jax.data.fingerprint`.
      given: features to use instead of the config's.
    """
    features = given or _features(config, dataset)
    of_data = config.data.model_dump(exclude={"data_dir", "random_flip", "dequantization", "transform"})

    def extracted(split: str, examples: Source) -> tuple[str, Extracted]:
        few = [examples[i] for i in range(0, len(examples), max(1, len(examples) // 100))]
        of = fingerprint(of_data, of_dataset[split], np.stack(few), features.fingerprint)

        def compute(part):
            numbers = range(part * PART, min((part + 1) * PART, len(examples)))
            return extracted_arrays(features, np.stack([examples[i] for i in numbers]), dataset.info)

        place, desc = directory / f"{split}-{features.name}-{of}", f"{features.name} of {split} data"
        return of, extracted_of(compute_parts(place, -(-len(examples) // PART), compute, desc=desc))

    (of_train, train), (of_test, test) = extracted("train", dataset.train), extracted("test", dataset.test)
    order = np.random.default_rng(0).permutation(len(test.features))
    if processes.is_first():
        text = json.dumps(_described(features, dataset), indent=1, ensure_ascii=False)
        write_whole(directory / REAL, lambda file: file.write(text.encode()))
    return Real(fingerprint(of_train, of_test), features, train, test.rows(order))


def about_real(directory: Path) -> str:
    """Return one line of remarks on the data and the features behind the results.

    Args:
      directory: the directory of the parts.
    """
    path = directory / REAL
    if not path.exists():
        return ""
    try:
        described = json.loads(path.read_text("utf-8"))
        return "; ".join(f"{name}: {value}" for name, value in described.items())
    except (ValueError, AttributeError):  # damaged; the next evaluation writes it again
        return ""


def _described(features: Features, dataset: Dataset) -> dict[str, Any]:
    found: dict[str, Any] = {
        "training examples": len(dataset.train),
        "test examples": len(dataset.test),
        "features": features.description or features.name,
    }
    if isinstance(dataset.train, np.ndarray) and isinstance(dataset.test, np.ndarray):
        known = {example.tobytes() for example in dataset.train}
        found["test examples that are training examples"] = sum(x.tobytes() in known for x in dataset.test)
    return found


def extracted_arrays(features: Features, examples: Examples, info: DatasetInfo) -> Arrays:
    """Return the features of stored examples, as the arrays of a part."""
    extracted = features.extract(examples if info.num_values is None else data.as_bytes(examples, info))
    return {name: array for name, array in extracted._asdict().items() if array is not None}


def extracted_of(parts: Parts) -> Extracted:
    """Return the features in all parts."""
    return joined([Extracted(part["features"], part.get("probabilities")) for part in parts])


def _features(config: Config, dataset: Dataset) -> Features:
    kind = config.evaluation.features
    if kind == "inception":
        return inception(config.evaluation.inception_weights)
    if kind == "pixels":
        return PIXELS
    labels = data.load_labels(config.data)
    if labels is None:
        raise UserError(
            f"config.evaluation.features='classifier': config.data.name={config.data.name!r} has no labels; "
            "accepted: 'inception' or 'pixels'"
        )
    train, test = (
        Labelled(data.as_bytes(np.stack([examples[i] for i in range(len(examples))]), dataset.info), of)
        for examples, of in zip((dataset.train, dataset.test), labels, strict=True)
    )
    return classifier(config.data.name, train, test)
