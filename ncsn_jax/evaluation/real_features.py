"""Features of real examples, with which samples are compared, and remarks on them."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped

from ncsn_jax import data
from ncsn_jax.data import Dataset, DatasetInfo, Source
from ncsn_jax.evaluation.against_real import Real
from ncsn_jax.evaluation.cached_parts import Arrays, Parts, compute_parts, fingerprint
from ncsn_jax.evaluation.classifier import Labelled, classifier
from ncsn_jax.evaluation.features import PIXELS, Extracted, Features, joined
from ncsn_jax.evaluation.inception import inception, is_installed
from ncsn_jax.evaluation.settings import Evaluation
from ncsn_jax.runtime import processes
from ncsn_jax.runtime.errors import ArgumentError
from ncsn_jax.runtime.files import write_whole

REAL = "real.json"
PART = 1_000
"""Number of examples whose features are in one file."""

Examples = Shaped[np.ndarray, "n *event"]
"""Examples as stored: pixels 0 … n − 1 of images, or points."""


def kind_of_features(dataset: Dataset) -> Literal["classifier", "inception", "pixels"]:
    """Return the kind of features for a dataset; suggest the extra `fid` in the log if it is missing."""
    if dataset.info.num_values is None:
        return "pixels"
    if dataset.load_labels is not None:
        return "classifier"
    if is_installed():
        return "inception"
    processes.say(
        f"images of {dataset.name!r} are compared in pixels; pip install -e '.[fid]' for the features of "
        "Inception-v3, which FID and KID need"
    )
    return "pixels"


def real_features(
    directory: Path,
    settings: Evaluation,
    dataset: Dataset,
    of_dataset: dict[str, Any],
    given: Features | None = None,
) -> Real:
    """Return the features of all training and test examples, computed in parts once per map and dataset.

    `real.json` next to the parts holds the numbers of examples and remarks on the data and the features.

    Args:
      directory: the directory of the parts.
      settings: the kind of features.
      dataset: the examples.
      of_dataset: their `ncsn_jax.data.fingerprint`.
      given: features to use instead of the settings'.
    """
    features = given or features_of(settings, dataset)
    of_network = ("random_flip", "dequantization", "transform")
    of_data = {name: value for name, value in dataset.identity.items() if name not in of_network}

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
    classes = dataset.classes()
    of_splits = (None, None) if classes is None else (classes[0], classes[1][order])
    return Real(fingerprint(of_train, of_test), features, train, test.rows(order), *of_splits)


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


def features_of(settings: Evaluation, dataset: Dataset) -> Features:
    """Return the settings' map to features; a classifier is trained at first use.

    Raises:
      ArgumentError: if the dataset has no labels for a classifier.
    """
    if settings.features == "inception":
        return inception(settings.inception_weights)
    if settings.features == "pixels":
        return PIXELS
    if dataset.load_labels is None:
        raise ArgumentError(
            f"features='classifier': {dataset.name!r} has no labels; accepted: 'inception' or 'pixels'"
        )
    train, test = (
        Labelled(data.as_bytes(np.stack([examples[i] for i in range(len(examples))]), dataset.info), of)
        for examples, of in zip((dataset.train, dataset.test), dataset.load_labels(), strict=True)
    )
    return classifier(dataset.name, train, test)
