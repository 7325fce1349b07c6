"""Samples to evaluate: samples of a checkpoint, drawn in parts, or given images."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from ncsn_jax import data
from ncsn_jax.data import Dataset, DatasetInfo
from ncsn_jax.evaluation.cached_parts import Parts, compute_parts, fingerprint
from ncsn_jax.evaluation.features import Extracted, Features
from ncsn_jax.evaluation.generator import Generator
from ncsn_jax.evaluation.real_features import PART, extracted_arrays, extracted_of
from ncsn_jax.models.score_fn import NetworkScore
from ncsn_jax.runtime.chains import NOT_FINITE, batches, draw, rows
from ncsn_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Samples:
    """The first `count` examples in the arrays `x` of parts, in the dataset's storage format.

    Attributes:
      of: the fingerprint of all inputs.
      count: the number of samples; the last part may hold more.
      parts: the parts.
    """

    of: str
    count: int
    parts: Parts

    def chunks(self) -> Iterator[Shaped[np.ndarray, "n *event"]]:
        """Yield the samples part by part."""
        left = self.count
        for number in range(len(self.parts)):
            x = self.parts[number]["x"][:left]
            left -= len(x)
            if len(x):
                yield x

    def first(self, count: int) -> Shaped[np.ndarray, "n *event"]:
        """Return the first `count` samples, or all if there are fewer."""
        found, number = [], 0
        while sum(map(len, found)) < min(count, self.count):
            found.append(self.parts[number]["x"])
            number += 1
        return np.concatenate(found)[: min(count, self.count)]


def preprocessing_facts(dataset: Dataset) -> dict[str, Any]:
    """Return the facts that decide the network's input beside the example; the transform by two values."""
    info = dataset.info
    ends = np.asarray(info.transform.forward(jnp.array([0.25, 0.75])), np.float64).tolist()
    return {"num_values": info.num_values, "dequantization": info.dequantization, "transform": ends}


def drawn_samples(
    directory: Path,
    score_fn: NetworkScore,
    of_network: str,
    generator: Generator,
    dataset: Dataset,
    count: int,
    name: str,
) -> Samples:
    """Draw samples of a network, as pixels of images or as points.

    They equal the first samples of the recipe's seed. A part is a batch, and the last batch is drawn in full.

    Args:
      directory: the directory of the parts.
      score_fn: the network.
      of_network: the fingerprint of the network.
      generator: the way to draw samples, with its batch size.
      dataset: the dataset, whose storage format the samples get.
      count: the number of samples.
      name: the name of the subject, for the progress bar.

    Raises:
      UserError: if some samples aren't finite.
    """
    info, recipe, batch_size = dataset.info, generator.recipe, generator.batch_size
    assert batch_size is not None
    of = fingerprint(
        of_network,
        generator.sampler_identity,
        batch_size,
        generator.sigmas,
        np.asarray(recipe.sampler.levels, np.float64).tolist(),
        (recipe.shape, recipe.noise, recipe.seed),
        preprocessing_facts(dataset),
    )
    to_stored = (lambda x: x) if info.num_values is None else data.quantize(info)
    (layout,) = batches(batch_size, batch_size)

    def compute(part):
        *_, last = draw(score_fn, recipe, part * batch_size + layout)
        x = rows(last)[:batch_size]
        lost = np.count_nonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))
        if lost:
            raise UserError(f"{name}: {lost} of {len(x)} samples are {NOT_FINITE}")
        return {"x": to_stored(x)}

    num_parts = -(-count // batch_size)
    parts = compute_parts(directory / f"samples-{of}", num_parts, compute, desc=f"samples of {name}")
    return Samples(of, count, parts)


def given_samples(directory: Path, pixels: Shaped[np.ndarray, "n *event"]) -> Samples:
    """Write given images to parts, and return them."""
    of = fingerprint(pixels)

    def compute(part):
        return {"x": pixels[part * PART : (part + 1) * PART]}

    parts = compute_parts(directory / f"samples-{of}", -(-len(pixels) // PART), compute, desc="images")
    return Samples(of, len(pixels), parts)


def sample_features(
    directory: Path, samples: Samples, features: Features, info: DatasetInfo, name: str
) -> Extracted:
    """Return the features of samples, computed part by part."""

    def compute(part):
        return extracted_arrays(features, samples.parts[part]["x"], info)

    place = directory / f"{features.name}-{fingerprint(samples.of, features.fingerprint)}"
    parts = compute_parts(place, len(samples.parts), compute, desc=f"{features.name} of {name}")
    return extracted_of(parts).rows(slice(samples.count))
