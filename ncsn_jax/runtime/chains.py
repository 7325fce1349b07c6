"""Many chains of a sampler at once, step by step, on all devices of this process.

Here a sampler is a Python loop over one compiled step, which allows progress bars and animation frames. Its
samples are the samples of `ncsn_jax.samplers.run`.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Key

from ncsn_jax.models.score_fn import NetworkScore
from ncsn_jax.posterior import Observation, posterior_score
from ncsn_jax.runtime.compiling import inference_options
from ncsn_jax.runtime.streams import stream
from ncsn_jax.samplers import Sampler, Step
from ncsn_jax.transforms import IDENTITY, Transform

States = Iterator[Float[Array, "devices batch *event"]]
"""States of a batch of chains: the first, then one after every step."""

Numbers = Int[np.ndarray, "devices batch"]
"""Numbers of the samples in a batch."""

NOT_FINITE = (
    "not finite; make the steps of the sampler smaller (step_size, snr, s_noise, or more num_levels) or, "
    "with method='ode', the tolerances larger"
)
"""Problem of samples, and its fix."""


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
    """

    sampler: Sampler
    shape: tuple[int, ...]
    noise: float = 0.0
    transform: Transform = IDENTITY
    seed: int = 0
    is_image: bool = True


def chains(
    sampler: Sampler,
    keys: Key[Array, "devices batch"],
    score_fn: NetworkScore,
    x: Float[Array, "devices batch *event"],
    observation: Observation | None = None,
) -> States:
    """Run a batch of chains, and yield their states: the first, then one after every step.

    Args:
      sampler: the sampler.
      keys: one key per chain; the key alone decides the sample, on any device and in any batch.
      score_fn: the network.
      x: the first states.
      observation: the observation of each chain, with leaves `(devices, batch, …)`; or None.
    """
    step = _pmapped_step(sampler.step)
    yield x
    last = sampler.num_steps - 1
    for i, (sigma, next_sigma) in enumerate(itertools.pairwise(sampler.levels)):
        x = step((keys, observation), score_fn, x, i, sigma, next_sigma)
        if sampler.finish is not None and i == last:
            x = _pmapped_finish(sampler.finish)((x, observation), score_fn)
        yield x


def draw(score_fn: NetworkScore, recipe: Recipe, numbers: Numbers) -> States:
    """Draw the numbered samples of a recipe, and return their states (see `chains`).

    The states are transformed back, so images lie in [0, 1], up to noise.
    """
    fold_in = functools.partial(jax.random.fold_in, stream(recipe.seed, "sampling"))
    keys, x = first_states(jax.vmap(jax.vmap(fold_in))(numbers), recipe)
    return map(recipe.transform.inverse, chains(recipe.sampler, keys, score_fn, x))


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


# An optional observation is paired with another argument: jax 0.12's pmap may mistake an argument without
# arrays for one with arrays, and split the network's arrays over the devices.


def _seen(score_fn, observation):
    return score_fn if observation is None else posterior_score(score_fn, observation)


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
    def run(key_and_observation, score_fn, x, i, sigma, next_sigma):
        key, observation = key_and_observation
        return step(jax.random.fold_in(key, i), _seen(score_fn, observation), x, sigma, next_sigma)

    return pmapped(run, (0, None, 0, None, None, None))


@functools.cache
def _pmapped_finish(finish):
    def run(x_and_observation, score_fn):
        x, observation = x_and_observation
        return finish(_seen(score_fn, observation), x)

    return pmapped(run, (0, None))
