"""Many chains of a sampler at once, step by step, on all devices of this process.

Here a sampler is a Python loop over one compiled step, which allows progress bars and animation frames. Its
samples are the samples of `ncsn_jax.samplers.run`.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Key

from ncsn_jax.guidance import classifier_free_guidance
from ncsn_jax.models.score_fn import NetworkScore
from ncsn_jax.posterior import Observation, posterior_score
from ncsn_jax.runtime.compiling import inference_options
from ncsn_jax.runtime.streams import stream
from ncsn_jax.samplers import Sampler, Step
from ncsn_jax.transforms import IDENTITY, Transform
from ncsn_jax.typing import ScoreFn

States = Iterator[Float[Array, "devices batch *event"]]
"""States of a batch of chains: the first, then one after every step."""

Numbers = Int[np.ndarray, "devices batch"]
"""Numbers of the samples in a batch."""

NOT_FINITE = (
    "not finite; make the steps of the sampler smaller (step_size, snr, s_noise, or more num_levels) or, "
    "with method='ode', the tolerances larger"
)
"""Problem of samples, and its fix."""


class Guidance(NamedTuple):
    """Classifier-free guidance: the arguments of `ncsn_jax.classifier_free_guidance`."""

    weight: float
    interval: tuple[float, float] = (0.0, math.inf)


class Given(NamedTuple):
    """Observations and conditions of chains, with leaves `(devices, batch, …)`.

    Attributes:
      observation: the observation of each chain; None for none.
      condition: the condition of each chain; None for the null condition.
    """

    observation: Observation | None = None
    condition: Any = None


class Recipe(NamedTuple):
    """A way to draw the samples of a seed: by a sampler, from uniform images with noise.

    Attributes:
      sampler: the sampler.
      shape: the shape of one sample, (height, width, channels) or (D,).
      noise: the standard deviation of the noise in the first state, in the network's space.
      transform: the map from the units of the data to the network's space, and back.
      seed: the seed.
      is_image: whether the first states are uniform images in [0, 1], before the transform; else they are
        uniform in the network's space.
      conditions: the conditions of samples by their numbers, an array: a pytree with further axes behind the
        numbers'. None for the null condition.
      guidance: the guidance by these conditions; None for none.
    """

    sampler: Sampler
    shape: tuple[int, ...]
    noise: float = 0.0
    transform: Transform = IDENTITY
    seed: int = 0
    is_image: bool = True
    conditions: Callable[[Numbers], Any] | None = None
    guidance: Guidance | None = None


def chains(
    sampler: Sampler,
    keys: Key[Array, "devices batch"],
    score_fn: NetworkScore,
    x: Float[Array, "devices batch *event"],
    given: Given | None = None,
    guidance: Guidance | None = None,
) -> States:
    """Run a batch of chains, and yield their states: the first, then one after every step.

    Args:
      sampler: the sampler.
      keys: one key per chain; the key alone decides the sample, on any device and in any batch.
      score_fn: the network.
      x: the first states.
      given: the observations and conditions of the chains; None for none.
      guidance: the guidance by the conditions; None for none.
    """
    guided, given = (score_fn, guidance), given or Given()
    step = _pmapped_step(sampler.step)
    yield x
    last = sampler.num_steps - 1
    for i, (sigma, next_sigma) in enumerate(itertools.pairwise(sampler.levels)):
        x = step((keys, given), guided, x, i, sigma, next_sigma)
        if sampler.finish is not None and i == last:
            x = _pmapped_finish(sampler.finish)((x, given), guided)
        yield x


def draw(score_fn: NetworkScore, recipe: Recipe, numbers: Numbers) -> States:
    """Draw the numbered samples of a recipe, and return their states (see `chains`).

    The states are transformed back, so images lie in [0, 1], up to noise.
    """
    fold_in = functools.partial(jax.random.fold_in, stream(recipe.seed, "sampling"))
    keys, x = first_states(jax.vmap(jax.vmap(fold_in))(numbers), recipe)
    given = Given() if recipe.conditions is None else Given(condition=recipe.conditions(numbers))
    states = chains(recipe.sampler, keys, score_fn, x, given, recipe.guidance)
    return map(recipe.transform.inverse, states)


def first_states(
    keys: Key[Array, "devices batch"], recipe: Recipe
) -> tuple[Key[Array, "devices batch"], Float[Array, "devices batch *event"]]:
    """Return the keys of chains and their first states, from the keys of samples."""
    transform = recipe.transform if recipe.is_image else IDENTITY
    return _pmapped_start(recipe.shape, transform, recipe.noise)(keys)


def batches(count: int, batch_size: int) -> list[Numbers]:
    """Return the numbers 0 … count − 1 in batches of one shape; the last batch may run past count − 1.

    A batch has `batch_size` numbers, or `count` if that is less, rounded up to a multiple of the devices.
    """
    devices = jax.local_device_count()
    per_device = -(-min(batch_size, count) // devices)
    size = devices * per_device
    return [first + np.arange(size).reshape(devices, per_device) for first in range(0, count, size)]


def rows(x: Float[Array, "devices batch *event"]) -> Float[np.ndarray, "n *event"]:
    """Return the samples of a batch, flattened over the devices, in the host's memory."""
    return np.asarray(x).reshape(-1, *x.shape[2:])


def pmapped(function: Callable, in_axes: tuple[int | None, ...]) -> Callable:
    """Map a function of one chain over `(devices, batch)` chains.

    Only this process's devices are used, in any cluster, because each sample is drawn by one process.
    """
    mapped = jax.pmap(jax.vmap(function, in_axes), in_axes=in_axes, devices=jax.local_devices())
    if jax.local_device_count() > 1:  # unlike pmap, jit refuses a network on one of the devices
        return mapped
    return jax.jit(mapped, compiler_options=inference_options())


def score_given(score_fn: NetworkScore, guidance: Guidance | None, given: Given) -> ScoreFn:
    """Return the score of one chain: conditional, guided, and of the posterior, as it is given."""
    score: ScoreFn = score_fn
    if given.condition is not None:
        score = dataclasses.replace(score_fn, condition=given.condition)
        if guidance is not None:
            score = classifier_free_guidance(score, score_fn, guidance.weight, interval=guidance.interval)
    return score if given.observation is None else posterior_score(score, given.observation)


# Arguments that may be None are paired with others: jax 0.12's pmap may mistake an argument without arrays
# for one with arrays, and split the network's arrays over the devices.


@functools.cache
def _pmapped_start(shape, transform, noise):
    def start(key):
        start_key, chain_key = jax.random.split(key)
        if not noise:
            return chain_key, transform.forward(jax.random.uniform(start_key, shape))
        uniform_key, noise_key = jax.random.split(start_key)
        x = transform.forward(jax.random.uniform(uniform_key, shape))
        return chain_key, x + noise * jax.random.normal(noise_key, shape)

    return pmapped(start, (0,))


@functools.cache
def _pmapped_step(step: Step):
    def run(key_and_given, guided, x, i, sigma, next_sigma):
        (key, given), (score_fn, guidance) = key_and_given, guided
        score = score_given(score_fn, guidance, given)
        return step(jax.random.fold_in(key, i), score, x, sigma, next_sigma)

    return pmapped(run, (0, None, 0, None, None, None))


@functools.cache
def _pmapped_finish(finish):
    def run(x_and_given, guided):
        (x, given), (score_fn, guidance) = x_and_given, guided
        return finish(score_given(score_fn, guidance, given), x)

    return pmapped(run, (0, None))
