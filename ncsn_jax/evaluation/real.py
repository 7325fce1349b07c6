"""Real examples: their features, which samples are held beside, and what is known of them."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped

from ncsn_jax import data, hosts
from ncsn_jax.config import Config
from ncsn_jax.data.datasets import Dataset, DatasetInfo, Source
from ncsn_jax.errors import UserError
from ncsn_jax.evaluation.classifier import Labelled, classifier
from ncsn_jax.evaluation.compared import Real
from ncsn_jax.evaluation.features import PIXELS, Extracted, Features, joined
from ncsn_jax.evaluation.inception import inception, is_installed
from ncsn_jax.evaluation.parts import Arrays, Parts, compute_parts, fingerprint
from ncsn_jax.files import write_whole

REAL = "real.json"
PART = 1_000
"""How many examples have their features in one file."""

Examples = Shaped[np.ndarray, "n *event"]
"""As they are stored: pixels 0 … n − 1 of images, or points."""


def kind_of_features(config: Config) -> Literal["classifier", "inception", "pixels"]:
    """What `config.evaluation.features` comes to; says so where Inception's aren't to be had."""
    if config.evaluation.features != "auto":
        return config.evaluation.features
    if len(data.describe(config.data).shape) != 3:
        return "pixels"
    if data.has_labels(config.data):
        return "classifier"
    if is_installed():
        return "inception"
    hosts.say(
        f"images of {config.data.name!r} are compared in pixels; pip install -e '.[fid]' brings the features "
        "of Inception-v3, in which FID and KID are measured"
    )
    return "pixels"


def real_features(
    directory: Path,
    config: Config,
    dataset: Dataset,
    of_dataset: dict[str, Any],
    given: Features | None = None,
) -> Real:
    """The features of all training and test examples, computed in parts, once for every map and dataset.

    `real.json` beside the parts says how many there are, and what should be known of them.

    Args:
      directory: where the parts lie.
      config: the run's; its `evaluation` says which features.
      dataset: the examples.
      of_dataset: their `ncsn_jax.data.fingerprint`.
      given: other features.
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
    if hosts.is_first():
        text = json.dumps(_described(features, dataset), indent=1, ensure_ascii=False)
        write_whole(directory / REAL, lambda file: file.write(text.encode()))
    return Real(fingerprint(of_train, of_test), features, train, test.rows(order))


def about_real(directory: Path) -> str:
    """One line of what a reader of results should know of the data behind them, and of the features.

    Args:
      directory: where the parts lie.
    """
    path = directory / REAL
    if not path.exists():
        return ""
    return "; ".join(f"{name}: {value}" for name, value in json.loads(path.read_text()).items())


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
    """The features of stored examples, as the arrays of a part."""
    extracted = features.extract(examples if info.num_values is None else data.as_bytes(examples, info))
    return {name: array for name, array in extracted._asdict().items() if array is not None}


def extracted_of(parts: Parts) -> Extracted:
    """The features in all parts."""
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
