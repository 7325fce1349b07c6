"""The application's sampling: many samples by any sampler, step by step, written to files.

A sampler here is a Python loop over one compiled step of its `Plan`, which allows progress bars and animation
frames. It gives the same samples as the function in `ncsn_jax.samplers`, as a test checks.
"""

import collections
import contextlib
import functools
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Key
from tqdm import tqdm

from ncsn_jax.config import Sampling, flatten
from ncsn_jax.data.preprocessing import TRANSFORMS, Transform
from ncsn_jax.models.score_fn import NetworkScore
from ncsn_jax.plan import Plan, Step, plan
from ncsn_jax.posterior import Observation, posterior_score
from ncsn_jax.runtime import processes, viz
from ncsn_jax.runtime.batch_size import chains_at_once
from ncsn_jax.runtime.compiling import inference_options
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.runtime.files import write_whole
from ncsn_jax.runtime.streams import stream

IDENTITY = TRANSFORMS["none"]
SAMPLES, SETTINGS = "samples.npy", "settings.json"
MAX_SHOWN = {3: 100, 1: 5_000}
"""Largest number of samples in the picture and the animation, by a sample's number of axes: 3 for images, 1
for vectors."""
NOT_FINITE = (
    "not finite; make the steps of config.sampling smaller (step_size, snr, s_noise, or more num_levels) or, "
    "with method='ode', the tolerances larger"
)
MAX_FRAMES = 60
"""Largest number of frames of an animation; samplers with more steps skip some."""

States = Iterator[Float[Array, "devices batch *event"]]
"""States of a batch of chains: the first, then one after every step."""

Numbers = Int[np.ndarray, "devices batch"]
"""Numbers of the samples in a batch."""


def chains(
    sampler: Plan,
    keys: Key[Array, "devices batch"],
    score_fn: NetworkScore,
    x: Float[Array, "devices batch *event"],
    observation: Observation | None = None,
) -> States:
    """Run a batch of chains, and yield their states: the first, then one after every step.

    Args:
      sampler: the plan.
      keys: one key per chain; the key alone decides the sample, on any device and in any batch.
      score_fn: the network.
      x: the first states.
      observation: the observation of each chain, with leaves `(devices, batch, …)`; or None.
    """
    step = _pmapped_step(sampler.step)
    yield x
    last = len(sampler.levels) - 2
    for i, (sigma, next_sigma) in enumerate(itertools.pairwise(sampler.levels)):
        x = step((keys, observation), score_fn, x, i, sigma, next_sigma)
        if sampler.finish is not None and i == last:
            x = _pmapped_finish(sampler.finish)((x, observation), score_fn)
        yield x


def draw(
    score_fn: NetworkScore,
    shape: tuple[int, ...],
    sigmas: tuple[float, ...],
    settings: Sampling,
    numbers: Numbers,
    *,
    transform: Transform = IDENTITY,
) -> States:
    """Draw the numbered samples of the seed, from uniform noise, and return their states (see `chains`).

    The states are transformed back, so images lie in [0, 1], up to noise.

    Args:
      score_fn: the network.
      shape: the shape of one sample, (height, width, channels) or (D,).
      sigmas: the noise levels of the model, descending.
      settings: the method, its parameters and the seed.
      numbers: the numbers of the samples.
      transform: the map from images in [0, 1] to the network's space, and back.
    """
    sampler = plan(settings, sigmas)
    fold_in = functools.partial(jax.random.fold_in, stream(settings.seed, "sampling"))
    keys, x = first_states(jax.vmap(jax.vmap(fold_in))(numbers), shape, sampler, transform)
    return map(transform.inverse, chains(sampler, keys, score_fn, x))


def first_states(
    keys: Key[Array, "devices batch"], shape: tuple[int, ...], sampler: Plan, transform: Transform
) -> tuple[Key[Array, "devices batch"], Float[Array, "devices batch *event"]]:
    """Return the keys of chains and their first states, from the keys of samples."""
    noise = sampler.levels[0] if sampler.noisy_start else 0.0
    return _pmapped_start(shape, transform, noise)(keys)


def batches(count: int, batch_size: int) -> list[Numbers]:
    """Return the numbers 0 … count − 1 in batches of one shape; the last batch may run past count − 1.

    A batch has `batch_size` numbers, or `count` if that is less, rounded up to a multiple of the devices.
    """
    devices = jax.local_device_count()
    per_device = -(-min(batch_size, count) // devices)
    size = devices * per_device
    return [first + np.arange(size).reshape(devices, per_device) for first in range(0, count, size)]


def announce_replacement(directory: Path, settings: Mapping[str, Any]) -> None:
    """Log which samples of a directory are about to be replaced, and how they were drawn.

    Args:
      directory: the directory of the samples and of the settings that `write_batches` wrote with them.
      settings: the settings of the new samples, by name.
    """
    if not (directory / SAMPLES).exists():
        return
    earlier, how = "samples", "drawn with unknown settings"
    with contextlib.suppress(Exception), (directory / SAMPLES).open("rb") as file:
        np.lib.format.read_magic(file)
        earlier = f"{np.lib.format.read_array_header_1_0(file)[0][0]} samples"
    with contextlib.suppress(Exception):  # damaged, or of an older version
        known = json.loads((directory / SETTINGS).read_text("utf-8"))
        old, earlier = known["settings"], f"{known['num_samples']} samples"
        names = [name for name in old | settings if old.get(name) != settings.get(name)]
        how = f"drawn with {', '.join(f'{n}={old.get(n)!r}' for n in names) or 'the same settings'}"
    processes.say(f"{directory}: replacing {earlier} {how}; --out=NAME keeps both")


def write_samples(
    directory: Path,
    score_fn: NetworkScore,
    shape: tuple[int, ...],
    sigmas: tuple[float, ...],
    settings: Sampling,
    *,
    transform: Transform = IDENTITY,
) -> None:
    """Draw `settings.num_samples` samples and write them, with a progress bar.

    `samples.npy` holds all samples, `(num_samples, *shape)`, float32, unclipped, and is written batch by
    batch. `settings.json` holds the settings. `grid.png` shows the first samples (100 images or 5,000
    points), and `annealing.gif` their states on the way from noise.

    Args:
      directory: the directory of the files; created if necessary.
      score_fn: the network.
      shape: the shape of one sample, (height, width, channels) or (D,).
      sigmas: the noise levels, descending.
      settings: the number of samples, the method and its parameters.
      transform: the map from images in [0, 1] to the network's space, and back.

    Raises:
      UserError: if the settings don't fit the levels; or, after all files are written, if some samples aren't
        finite.
    """
    sampler, described = plan(settings, sigmas), flatten({"sampling": settings.model_dump()})
    directory.mkdir(parents=True, exist_ok=True)
    written = write_batches(
        directory / SAMPLES,
        described,
        lambda numbers: draw(score_fn, shape, sigmas, settings, numbers, transform=transform),
        batches(settings.num_samples, chains_at_once(settings.batch_size, score_fn.model, shape)),
        num_steps=sampler.num_steps,
        counts=(settings.num_samples,),
        shape=shape,
        shown=np.arange(MAX_SHOWN[len(shape)]),
    )
    pictures = viz.pictures(written.frames)
    viz.save_png(directory / "grid.png", pictures[-1])
    viz.save_gif(directory / "annealing.gif", pictures)
    written.require_finite()


class Written(NamedTuple):
    """Result of `write_batches`.

    Attributes:
      path: the file.
      frames: states of the shown samples, at most `MAX_FRAMES` and the last one.
      num_lost: the number of samples that aren't finite.
      num_samples: the number of all samples.
    """

    path: Path
    frames: list[Float[np.ndarray, "shown *event"]]
    num_lost: int
    num_samples: int

    def require_finite(self) -> None:
        """Raise a UserError if some samples aren't finite."""
        if self.num_lost:
            raise UserError(f"{self.path}: {self.num_lost} of {self.num_samples} samples are {NOT_FINITE}")


def write_batches(
    path: Path,
    settings: Mapping[str, Any],
    run: Callable[[Numbers], States],
    numbers: list[Numbers],
    *,
    num_steps: int,
    counts: tuple[int, ...],
    shape: tuple[int, ...],
    shown: Int[np.ndarray, " shown"],
) -> Written:
    """Run chains batch by batch, with a progress bar, and write the last states of each batch.

    Memory holds one batch and the frames, for any number of samples and steps.

    Args:
      path: the `.npy` file, float32, `(*counts, *shape)`.
      settings: the settings of the samples, by name, for `settings.json` next to the file.
      run: the map from the numbers of a batch to its states.
      numbers: the numbers of the samples in each batch.
      num_steps: the number of states after the first.
      counts: the sizes of the samples' axes in the file.
      shape: the shape of one sample.
      shown: the numbers of the samples whose frames are kept, ascending.
    """
    partial = path.with_name(path.name + ".partial")
    file = np.lib.format.open_memmap(partial, "w+", np.float32, (*counts, *shape))
    with partial.open("r+b") as whole:  # so that a full disk is an error here, not a bus error later
        os.posix_fallocate(whole.fileno(), 0, partial.stat().st_size)
    if path.name == SAMPLES:
        announce_replacement(path.parent, settings)
    samples = file.reshape(-1, *shape)
    count, first, num_finite = len(samples), 0, 0
    every = -(-num_steps // MAX_FRAMES)
    frames = {step: [] for step in range(num_steps, -1, -every)}
    with tqdm(total=len(numbers) * num_steps, unit="step", desc=f"{path.parent.name} {count}") as bar:
        for batch in numbers:
            for step, x in enumerate(run(batch)):
                jax.block_until_ready(x)
                if step in frames:
                    here = shown[(first <= shown) & (shown < min(first + batch.size, count))] - first
                    frames[step].append(rows(x)[here])  # a copy: a slice would keep the whole batch
                if step == num_steps:
                    drawn = rows(x)[: count - first]
                    samples[first : first + batch.size] = drawn
                    num_finite += np.isfinite(drawn).reshape(len(drawn), -1).all(axis=1).sum()
                bar.update(min(step, 1))
            first += batch.size
    file.flush()
    partial.rename(path)
    text = json.dumps({"num_samples": count, "settings": settings}, indent=1)
    write_whole(path.with_name(SETTINGS), lambda file: file.write(text.encode()))
    kept = [np.concatenate(frames[step]) for step in sorted(frames)]
    return Written(path, kept, count - int(num_finite), count)


def preview(
    score_fn: NetworkScore,
    shape: tuple[int, ...],
    sigmas: tuple[float, ...],
    settings: Sampling,
    count: int,
    *,
    transform: Transform = IDENTITY,
    is_unwanted: Callable[[], bool] = lambda: False,
) -> viz.Picture | None:
    """Return a picture of the first `count` samples of the seed; None once `is_unwanted()` holds."""
    (numbers,) = batches(count, count)
    last = collections.deque(maxlen=1)
    for x in draw(score_fn, shape, sigmas, settings, numbers, transform=transform):
        last.append(jax.block_until_ready(x))
        if is_unwanted():
            return None
    return viz.pictures([rows(last[0])[:count]])[0]


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
