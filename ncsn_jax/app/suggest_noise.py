"""Noise levels and a step size chosen from data, by NCSNv2's Techniques 1, 2 and 4."""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from ncsn_jax import data
from ncsn_jax.app.config import Config
from ncsn_jax.noise import EXACT_UP_TO, geometric_sigmas, largest_distance, num_scales_for, step_size_for
from ncsn_jax.runtime.errors import UserError

MAX_BYTES = 2**30
"""Largest memory of the examples whose distances are computed, in bytes."""
BLOCK_BYTES = 2**26
"""Memory of the examples that are preprocessed at once, in bytes."""


class Suggestion(NamedTuple):
    """Suggested settings, and the numbers that they follow from.

    Attributes:
      sigma_begin: σ₁, rounded up to three digits.
      num_scales: L, the number of levels.
      step_size: ε, rounded to two digits.
      distance: the largest distance between two examples.
      num_examples: the number of examples whose distances were computed.
      dim: D, the number of values in an example.
    """

    sigma_begin: float
    num_scales: int
    step_size: float
    distance: float
    num_examples: int
    dim: int


def suggest_noise(x: Float[np.ndarray, "n ..."], sigma_end: float, steps_per_scale: int) -> Suggestion:
    """Return the noise levels and the step size for data.

    Args:
      x: the examples, in the network's space.
      sigma_end: σ_L, the smallest level: your choice of the noise that samples may keep.
      steps_per_scale: T, your choice of the cost of sampling.

    Raises:
      ValueError: if there are fewer than two different examples, or σ_L isn't far below their distance.
    """
    distance, dim = largest_distance(x), math.prod(x.shape[1:])
    digit = 10.0 ** (math.floor(math.log10(distance)) - 2)
    sigma_begin = round(math.ceil(distance / digit - 1e-3) * digit, 12)
    num_scales = num_scales_for(sigma_begin, sigma_end, dim)
    step_size = step_size_for(geometric_sigmas(sigma_begin, sigma_end, num_scales), steps_per_scale)
    return Suggestion(sigma_begin, num_scales, float(f"{step_size:.1e}"), distance, len(x), dim)


def for_config(config: Config, dataset: data.Dataset) -> Suggestion:
    """Return the suggestion for a config's training data, or for a random subset that fits in 1 GiB.

    Raises:
      UserError: if the data allow no suggestion.
    """
    x = training_examples(dataset)
    try:
        return suggest_noise(x, config.model.sigma_end, config.sampling.steps_per_scale)
    except ValueError as error:
        raise UserError(f"config.data.name={config.data.name!r} suggests no noise levels: {error}") from error


def training_examples(dataset: data.Dataset) -> Float[np.ndarray, "n ..."]:
    """Return training examples in the network's space: all, or a random subset that fits in 1 GiB."""
    return np.concatenate(list(training_blocks(dataset)))


def training_blocks(dataset: data.Dataset) -> Iterator[Float[np.ndarray, "n ..."]]:
    """Yield the examples of `training_examples`, some at a time."""
    size = 4 * math.prod(dataset.info.shape)
    count = min(len(dataset.train), max(1, MAX_BYTES // size))
    chosen = np.sort(np.random.default_rng(0).permutation(len(dataset.train))[:count])
    keys = jax.random.split(jax.random.key(0), count)
    preprocess = jax.jit(jax.vmap(data.preprocessing(dataset.info)))
    length = max(1, BLOCK_BYTES // size)
    for first in range(0, count, length):
        examples = [dataset.train[int(i)] for i in chosen[first : first + length]]
        stored = np.stack([e["x"] if isinstance(e, Mapping) else e for e in examples])
        yield np.asarray(preprocess(keys[first : first + length], stored))


def report(config: Config, suggestion: Suggestion, dataset: data.Dataset) -> str:
    """Return the suggestion as text: its reasons, then a fragment of a config and the equivalent flags."""
    s, model, steps = suggestion, config.model, config.sampling.steps_per_scale
    ratio = (s.sigma_begin / model.sigma_end) ** (1 / (s.num_scales - 1))
    how = "exact" if s.num_examples <= EXACT_UP_TO else "lower bound, by farthest-point search"
    if s.num_examples < len(dataset.train):
        how = f"lower bound, from {s.num_examples} drawn at random"
    levels = f"sigma_begin={s.sigma_begin:g}, sigma_end={model.sigma_end:g}, num_scales={s.num_scales}"
    return f"""\
{config.data.name}: {len(dataset.train)} training examples of {s.dim} numbers

sigma_begin = {s.sigma_begin:g}: the largest distance between two examples is {s.distance:.4g} \
({how}; Technique 1)
num_scales = {s.num_scales}: levels of ratio {ratio:.4g} down to sigma_end = {model.sigma_end:g}, so that \
neighbours overlap (Technique 2)
step_size = {s.step_size:g}: with steps_per_scale = {steps}, it brings a chain closest to each level \
(Technique 4)

In a config:

    model={type(model).__name__}({levels}),
    sampling=Sampling(step_size={s.step_size:g}, steps_per_scale={steps}),

or on the command line:

    --config.model.sigmas=geometric --config.model.sigma_begin={s.sigma_begin:g} \
--config.model.sigma_end={model.sigma_end:g} --config.model.num_scales={s.num_scales} \
--config.sampling.step_size={s.step_size:g} --config.sampling.steps_per_scale={steps}

--config.model.sigmas=auto chooses the same values when a run begins."""
