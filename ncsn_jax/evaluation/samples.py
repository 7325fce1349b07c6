"""Samples to evaluate: samples of a checkpoint, drawn in parts, or given images."""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from ncsn_jax import data, sampling
from ncsn_jax.config import Config
from ncsn_jax.data.datasets import DatasetInfo
from ncsn_jax.evaluation.cached_parts import Parts, compute_parts, fingerprint
from ncsn_jax.evaluation.features import Extracted, Features
from ncsn_jax.evaluation.real_features import PART, extracted_arrays, extracted_of
from ncsn_jax.models.score_fn import NetworkScore
from ncsn_jax.runtime.batch_size import chains_at_once
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

    def first(self, count: int) -> Shaped[np.ndarray, "n *event"]:
        """Return the first `count` samples, or all if there are fewer."""
        found, number = [], 0
        while sum(map(len, found)) < min(count, self.count):
            found.append(self.parts[number]["x"])
            number += 1
        return np.concatenate(found)[: min(count, self.count)]


def drawn_samples(
    directory: Path, score_fn: NetworkScore, of_network: str, config: Config, info: DatasetInfo, name: str
) -> Samples:
    """Draw samples of a network with the config's sampler, as pixels of images or as points.

    They equal the first samples of `--mode sample`. A part is a batch, and the last batch is drawn in full.

    Args:
      directory: the directory of the parts.
      score_fn: the network.
      of_network: the fingerprint of the network.
      config: the run's config.
      info: the storage format of the dataset.
      name: the name of the subject, for the progress bar.

    Raises:
      UserError: if some samples aren't finite.
    """
    settings, sigmas = config.sampling, config.model.noise_levels
    of = fingerprint(
        of_network,
        settings.model_dump(exclude={"num_samples"}),
        sigmas,
        config.data.model_dump(include={"dequantization", "transform"}),
    )
    transform = data.TRANSFORMS[config.data.transform]
    to_stored = (lambda x: x) if info.num_values is None else data.quantize(config.data, info)
    count, batch_size = (
        config.evaluation.num_samples,
        chains_at_once(settings.batch_size, score_fn.model, info.shape),
    )
    (layout,) = sampling.batches(batch_size, batch_size)

    def compute(part):
        numbers = part * batch_size + layout
        *_, last = sampling.draw(score_fn, info.shape, sigmas, settings, numbers, transform=transform)
        x = sampling.rows(last)[:batch_size]
        lost = np.count_nonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))
        if lost:
            raise UserError(f"{name}: {lost} of {len(x)} samples are {sampling.NOT_FINITE}")
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
