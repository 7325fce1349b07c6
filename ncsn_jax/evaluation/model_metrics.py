"""Metrics of a network on test examples: its likelihood, and its loss at each noise level."""

import functools
import math
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax import Array
from jaxtyping import Shaped

from ncsn_jax import data, likelihood, sampling
from ncsn_jax.config import Config
from ncsn_jax.data.datasets import Source
from ncsn_jax.evaluation.cached_parts import compute_parts
from ncsn_jax.evaluation.results import Found, Result, count_name
from ncsn_jax.losses import denoising_score_matching, divergence
from ncsn_jax.models.score_fn import NetworkScore
from ncsn_jax.runtime.batch_size import chains_at_once
from ncsn_jax.runtime.streams import stream

MAX_EXACT = 16
"""Largest dimension with an exact trace by default; it costs one derivative per dimension."""
MAX_LEVELS = 50
"""Largest number of noise levels at which the loss is measured."""

Batch = Shaped[np.ndarray, "n *event"]


def bits_per_dim(directory: Path, score_fn: NetworkScore, config: Config, test: Source) -> Found:
    """Compute bits per dimension of test examples by the probability flow, with uniform dequantization.

    Args:
      directory: the directory of the parts.
      score_fn: the network, for any σ.
      config: the run's config; `evaluation` holds the number of examples and the method for the trace.
      test: the stored examples.

    Raises:
      ValueError: if the solver failed on some of them.
    """
    info, settings = data.describe(config.data), config.evaluation
    batch_size = chains_at_once(config.sampling.batch_size, score_fn.model, info.shape)
    count = min(settings.likelihood_examples, len(test))
    run = _log_likelihood(config)  # pyright: ignore[reportArgumentType]
    key = stream(config.seed, "likelihood")

    def compute(part):
        numbers = _part(part, count, batch_size)
        x = np.stack([test[int(number)] for number in numbers])
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(numbers)
        return {"log_likelihood": _on_devices(run, score_fn, batch_size, keys, x)}

    parts = compute_parts(directory, -(-count // batch_size), compute, desc="likelihood")
    values = parts.together("log_likelihood").astype(np.float64)
    lost = np.count_nonzero(~np.isfinite(values))
    if lost:
        raise ValueError(
            f"the solver failed on {lost} of {count} test examples; increase "
            f"config.sampling.rtol={config.sampling.rtol} and atol={config.sampling.atol}"
        )
    dim = math.prod(info.shape)
    bits = np.array([likelihood.bits_per_dim(value, dim, num_values=info.num_values) for value in values])
    error = bits.std(ddof=1) / np.sqrt(count) if count > 1 else None
    name = f"bits/dim, {count_name(count)} test examples"
    return Found({name: Result(value=bits.mean(), standard_error=error, better="lower")})


def loss_by_level(directory: Path, score_fn: NetworkScore, config: Config, test: Source) -> Found:
    """Compute the denoising loss of test examples at the model's noise levels, or at 50 if there are more.

    Args:
      directory: the directory of the parts.
      score_fn: the network.
      config: the run's config.
      test: the stored examples.

    Returns:
      The mean over the levels; and for each level σ, the mean loss and its standard error.
    """
    batch_size = chains_at_once(config.sampling.batch_size, score_fn.model, data.describe(config.data).shape)
    count = min(config.evaluation.loss_examples, len(test))
    levels = config.model.noise_levels
    chosen = np.unique(np.linspace(0, len(levels) - 1, min(len(levels), MAX_LEVELS)).round().astype(int))
    sigmas = [levels[i] for i in chosen]
    run = _loss(config)  # pyright: ignore[reportArgumentType]
    key = stream(config.seed, "levels")

    def compute(part):
        losses = []
        for first in range(0, count, batch_size):
            numbers = np.arange(first, min(first + batch_size, count))
            x = np.stack([test[int(number)] for number in numbers])
            level_key = jax.random.fold_in(key, part)
            keys = jax.vmap(functools.partial(jax.random.fold_in, level_key))(numbers)
            sigma = np.full(len(numbers), sigmas[part], np.float32)
            losses.append(_on_devices(run, score_fn, batch_size, keys, x, sigma))
        return {"loss": np.concatenate(losses)[None]}

    losses = compute_parts(directory, len(sigmas), compute, desc="loss by level").together("loss")
    means, name = losses.mean(1, dtype=np.float64), f"loss, {count_name(count)} test examples"
    details = {"sigma": sigmas, "loss": means.tolist()}
    if count == 1:
        return Found({name: Result(value=means.mean(), better="lower")}, details)
    error = losses.mean(0).std(ddof=1) / np.sqrt(count)
    errors = losses.std(1, ddof=1) / np.sqrt(count)
    total = Result(value=means.mean(), standard_error=error, better="lower")
    return Found({name: total}, details | {"standard_error": errors.tolist()})


def _part(part: int, count: int, batch_size: int) -> np.ndarray:
    return np.arange(part * batch_size, min((part + 1) * batch_size, count))


@functools.cache
def _log_likelihood(config: Config) -> Callable:
    """Return log p of a stored example; for an image, a density on [0, 1] with uniform dequantization."""
    info, settings = data.describe(config.data), config.evaluation
    sigmas = config.model.noise_levels
    dequantized = config.data.model_copy(update={"dequantization": "uniform", "transform": "none"})
    prepare = data.preprocessing(dequantized, info)
    forward = data.TRANSFORMS[config.data.transform].forward
    exact = settings.trace == "exact" or (settings.trace == "auto" and np.prod(info.shape) <= MAX_EXACT)

    def log_likelihood(key, score_fn, x):
        dequantization_key, probe_key = jax.random.split(key)
        x = prepare(dequantization_key, x)
        y = forward(x)
        probes = likelihood.hutchinson(probe_key, y, num_probes=settings.num_probes)
        value = likelihood.log_likelihood(
            score_fn,
            y,
            sigmas[-1],
            sigmas[0],
            divergence=divergence if exact else probes,
            rtol=config.sampling.rtol,
            atol=config.sampling.atol,
        )
        return value + likelihood.log_jacobian(forward, x)

    return sampling.pmapped(log_likelihood, (0, None, 0))


@functools.cache
def _loss(config: Config) -> Callable:
    prepare = data.preprocessing(config.data, data.describe(config.data))
    power = config.training.power

    def loss(key, score_fn, x, sigma):
        prepare_key, noise_key = jax.random.split(key)
        return denoising_score_matching(noise_key, score_fn, prepare(prepare_key, x), sigma, power=power)

    return sampling.pmapped(loss, (0, None, 0, 0))


def _on_devices(run: Callable, score_fn: NetworkScore, batch_size: int, keys: Array, *arrays) -> np.ndarray:
    """Compute values of up to `batch_size` examples in one shape, and drop the padding."""
    (layout,), count = sampling.batches(batch_size, batch_size), len(keys)
    first, *others = (array[np.minimum(layout, count - 1)] for array in (keys, *arrays))
    return np.asarray(run(first, score_fn, *others)).reshape(-1)[:count]
