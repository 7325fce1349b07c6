"""Metrics of a network on test examples: its likelihood, and its loss at each noise level."""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jaxtyping import Int, Shaped

from ncsn_jax import data, likelihood
from ncsn_jax.data import Dataset, DatasetInfo
from ncsn_jax.evaluation.cached_parts import compute_parts
from ncsn_jax.evaluation.generator import Generator
from ncsn_jax.evaluation.results import Found, Result, count_name
from ncsn_jax.evaluation.settings import Evaluation
from ncsn_jax.losses import denoising_score_matching, divergence
from ncsn_jax.models.score_fn import NetworkScore
from ncsn_jax.runtime.batch_size import chains_at_once
from ncsn_jax.runtime.chains import Given, batches, pmapped, score_given
from ncsn_jax.runtime.streams import stream
from ncsn_jax.transforms import IDENTITY

MAX_EXACT = 16
"""Largest dimension with an exact trace by default; it costs one derivative per dimension."""
MAX_LEVELS = 50
"""Largest number of noise levels at which the loss is measured."""

Batch = Shaped[np.ndarray, "n *event"]


def bits_per_dim(
    directory: Path, score_fn: NetworkScore, generator: Generator, settings: Evaluation, dataset: Dataset
) -> Found:
    """Compute bits per dimension of test examples by the probability flow, with uniform dequantization.

    Args:
      directory: the directory of the parts.
      score_fn: the network, for any σ.
      generator: its noise levels, the tolerances of the solver, and the seed.
      settings: the number of examples, and the method for the trace.
      dataset: the stored examples.

    Raises:
      ValueError: if the solver failed on some of them.
    """
    info, test = dataset.info, dataset.test
    batch_size = chains_at_once(generator.batch_size, score_fn.model, info.shape)
    count = min(settings.likelihood_examples, len(test))
    ends, tolerances = (generator.sigmas[-1], generator.sigmas[0]), (generator.rtol, generator.atol)
    run = _log_likelihood(info, ends, tolerances, settings.trace, settings.num_probes)
    key = stream(generator.seed, "likelihood")

    def compute(part):
        numbers = np.arange(part * batch_size, min((part + 1) * batch_size, count))
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(numbers)
        return {"log_likelihood": _on_devices(run, score_fn, batch_size, keys, _examples(dataset, numbers))}

    parts = compute_parts(directory, -(-count // batch_size), compute, desc="likelihood")
    values = parts.together("log_likelihood").astype(np.float64)
    lost = np.count_nonzero(~np.isfinite(values))
    if lost:
        raise ValueError(
            f"the solver failed on {lost} of {count} test examples; increase "
            f"rtol={generator.rtol} and atol={generator.atol}"
        )
    dim = math.prod(info.shape)
    bits = np.array([likelihood.bits_per_dim(value, dim, num_values=info.num_values) for value in values])
    error = bits.std(ddof=1) / np.sqrt(count) if count > 1 else None
    name = f"bits/dim, {count_name(count)} test examples"
    return Found({name: Result(value=bits.mean(), standard_error=error, better="lower")})


def loss_by_level(
    directory: Path, score_fn: NetworkScore, generator: Generator, settings: Evaluation, dataset: Dataset
) -> Found:
    """Compute the denoising loss of test examples at the model's noise levels, or at 50 if there are more.

    Args:
      directory: the directory of the parts.
      score_fn: the network.
      generator: its noise levels, the weight of the loss, and the seed.
      settings: the number of examples.
      dataset: the stored examples.

    Returns:
      The mean over the levels; and for each level σ, the mean loss and its standard error.
    """
    test, levels = dataset.test, generator.sigmas
    batch_size = chains_at_once(generator.batch_size, score_fn.model, dataset.info.shape)
    count = min(settings.loss_examples, len(test))
    chosen = np.unique(np.linspace(0, len(levels) - 1, min(len(levels), MAX_LEVELS)).round().astype(int))
    sigmas = [levels[i] for i in chosen]
    run = _loss(dataset.info, generator.power)
    key = stream(generator.seed, "levels")

    def compute(part):
        losses = []
        for first in range(0, count, batch_size):
            numbers = np.arange(first, min(first + batch_size, count))
            level_key = jax.random.fold_in(key, part)
            keys = jax.vmap(functools.partial(jax.random.fold_in, level_key))(numbers)
            sigma = np.full(len(numbers), sigmas[part], np.float32)
            examples = _examples(dataset, numbers)
            losses.append(_on_devices(run, score_fn, batch_size, keys, examples, sigma))
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


@functools.cache
def _log_likelihood(
    info: DatasetInfo,
    ends: tuple[float, float],
    tolerances: tuple[float, float],
    trace: str,
    num_probes: int,
) -> Callable:
    """Return log p of a stored example; for an image, a density on [0, 1] with uniform dequantization."""
    prepare = data.preprocessing(dataclasses.replace(info, dequantization="uniform", transform=IDENTITY))
    forward = info.transform.forward
    exact = trace == "exact" or (trace == "auto" and np.prod(info.shape) <= MAX_EXACT)
    rtol, atol = tolerances

    def log_likelihood(key, score_fn, example):
        x, condition = example
        score_fn = score_given(score_fn, None, Given(condition=condition))
        dequantization_key, probe_key = jax.random.split(key)
        x = prepare(dequantization_key, x)
        y = forward(x)
        probes = likelihood.hutchinson(probe_key, y, num_probes=num_probes)
        value = likelihood.log_likelihood(
            score_fn,
            y,
            *ends,
            divergence=divergence if exact else probes,
            rtol=rtol,
            atol=atol,
        )
        return value + likelihood.log_jacobian(forward, x)

    return pmapped(log_likelihood, (0, None, 0))


@functools.cache
def _loss(info: DatasetInfo, power: float) -> Callable:
    prepare = data.preprocessing(info)

    def loss(key, score_fn, example, sigma):
        x, condition = example
        score_fn = score_given(score_fn, None, Given(condition=condition))
        prepare_key, noise_key = jax.random.split(key)
        return denoising_score_matching(noise_key, score_fn, prepare(prepare_key, x), sigma, power=power)

    return pmapped(loss, (0, None, 0, 0))


def _examples(dataset: Dataset, numbers: Int[np.ndarray, " n"]) -> tuple[Batch, Any]:
    """Return test examples and their conditions; None without conditions."""
    x, conditions = np.stack([dataset.test[int(number)] for number in numbers]), dataset.test_conditions
    if conditions is None:
        return x, None
    return x, conditions.rows(numbers)


def _on_devices(run: Callable, score_fn: NetworkScore, batch_size: int, keys: Array, *trees) -> np.ndarray:
    """Compute values of up to `batch_size` examples in one shape, and drop the padding."""
    (layout,), count = batches(batch_size, batch_size), len(keys)
    chosen = np.minimum(layout, count - 1)
    first, *others = jax.tree.map(lambda array: array[chosen], (keys, *trees))
    return np.asarray(run(first, score_fn, *others)).reshape(-1)[:count]
