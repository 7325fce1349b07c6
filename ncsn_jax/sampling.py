"""Sampling as the application runs it: any sampler, many samples, step by step, to files.

A sampler is a Python loop over the one compiled step of its `Plan`, for progress and animation frames; the
result equals that of its function in `ncsn_jax.langevin` or `ncsn_jax.samplers` (a test holds them together).
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

from ncsn_jax import hosts, viz
from ncsn_jax.batch_size import chains_at_once
from ncsn_jax.compiling import inference_options
from ncsn_jax.config import Sampling, flatten
from ncsn_jax.data.preprocessing import TRANSFORMS, Transform
from ncsn_jax.errors import UserError
from ncsn_jax.files import write_whole
from ncsn_jax.models.score_fn import NetworkScore
from ncsn_jax.plan import Plan, Step, plan
from ncsn_jax.restoration import Observation, posterior_score
from ncsn_jax.streams import stream

IDENTITY = TRANSFORMS["none"]
SAMPLES, SETTINGS = "samples.npy", "settings.json"
MAX_SHOWN = {3: 100, 1: 5_000}
"""The most samples that the picture and the animation show, of images and of vectors, by their axes."""
NOT_FINITE = (
    "not finite: config.sampling asks for steps that are too large (step_size, snr, num_levels, s_noise), "
    "or, of ode, for too small a tolerance"
)
MAX_FRAMES = 60
"""The most frames of an animation; samplers with more steps skip some."""

States = Iterator[Float[Array, "devices batch *event"]]
"""The states of a batch of chains: the first, then one after every step."""

Numbers = Int[np.ndarray, "devices batch"]
"""Which samples make a batch."""


def chains(
    sampler: Plan,
    keys: Key[Array, "devices batch"],
    score_fn: NetworkScore,
    x: Float[Array, "devices batch *event"],
    observation: Observation | None = None,
) -> States:
    """Runs a batch of chains, and yields their states: the first, then one after every step.

    Args:
      sampler: how they go.
      keys: one key a chain; it decides the sample, wherever and beside whatever that is drawn.
      score_fn: the network.
      x: the first states.
      observation: what each chain sees, its leaves `(devices, batch, …)`; or nothing.
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
    """The states (see `chains`) of those samples of the seed, from uniform noise.

    They are transformed back: images are in [0, 1], but for what noise adds.

    Args:
      score_fn: the network.
      shape: of one sample: (height, width, channels), or (D,).
      sigmas: the noise levels of the model, descending.
      settings: the method, its parameters and the seed.
      numbers: which samples.
      transform: from images in [0, 1] to what the network was trained on, and back.
    """
    sampler = plan(settings, sigmas)
    fold_in = functools.partial(jax.random.fold_in, stream(settings.seed, "sampling"))
    keys, x = first_states(jax.vmap(jax.vmap(fold_in))(numbers), shape, sampler, transform)
    return map(transform.inverse, chains(sampler, keys, score_fn, x))


def first_states(
    keys: Key[Array, "devices batch"], shape: tuple[int, ...], sampler: Plan, transform: Transform
) -> tuple[Key[Array, "devices batch"], Float[Array, "devices batch *event"]]:
    """The keys of chains and their first states, from the keys of samples."""
    noise = sampler.levels[0] if sampler.noisy_start else 0.0
    return _pmapped_start(shape, transform, noise)(keys)


def batches(count: int, batch_size: int) -> list[Numbers]:
    """The numbers 0 … count − 1 in batches of one shape, with some more in the last.

    A batch is `batch_size`, or slightly more where the devices don't divide it.
    """
    devices = jax.local_device_count()
    per_device = -(-min(batch_size, count) // devices)
    size = devices * per_device
    return [first + np.arange(size).reshape(devices, per_device) for first in range(0, count, size)]


def announce_replacement(directory: Path, settings: Mapping[str, Any]) -> None:
    """Says which samples of a directory others are about to replace, and how they were drawn.

    Args:
      directory: where they lie, with the settings that `write_batches` has left beside them.
      settings: how the others are drawn, by name.
    """
    try:
        count = len(np.load(directory / SAMPLES, mmap_mode="r"))
    except (OSError, ValueError):  # there are none, or they aren't whole
        return
    how = "drawn by an older version"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads((directory / SETTINGS).read_text())
        old, count = known["settings"], known["num_samples"]
        differing = [
            f"{name}={old.get(name)!r}" for name in old | settings if old.get(name) != settings.get(name)
        ]
        how = f"drawn with {', '.join(differing)}" if differing else "drawn with the same settings"
    hosts.say(f"{directory}: replaces {count} samples {how}; --out=NAME keeps both")


def write_samples(
    directory: Path,
    score_fn: NetworkScore,
    shape: tuple[int, ...],
    sigmas: tuple[float, ...],
    settings: Sampling,
    *,
    transform: Transform = IDENTITY,
) -> None:
    """Draws `settings.num_samples` samples and writes them, with a progress bar.

    `samples.npy` gets them all, `(num_samples, *shape)`, float32, unclipped, batch by batch as they come;
    `settings.json` says how they were drawn; `grid.png` and `annealing.gif` show the first of them (100
    images, 5,000 points) and their way there.

    Args:
      directory: where to; made if need be.
      score_fn: the network.
      shape: of one sample: (height, width, channels), or (D,).
      sigmas: the noise levels, descending.
      settings: how many, and how they are drawn.
      transform: from images in [0, 1] to what the network was trained on, and back.

    Raises:
      UserError: if the settings don't fit the levels; if some samples aren't finite, after all is written.
    """
    sampler, described = plan(settings, sigmas), flatten({"sampling": settings.model_dump()})
    directory.mkdir(parents=True, exist_ok=True)
    written = write_batches(
        directory / SAMPLES,
        described,
        lambda numbers: draw(score_fn, shape, sigmas, settings, numbers, transform=transform),
        batches(settings.num_samples, chains_at_once(settings, score_fn.model, shape)),
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
    """What `write_batches` has written.

    Attributes:
      path: the file.
      frames: at most `MAX_FRAMES` states of the samples to be shown, and the last one.
      num_lost: how many samples aren't finite.
      num_samples: of how many.
    """

    path: Path
    frames: list[Float[np.ndarray, "shown *event"]]
    num_lost: int
    num_samples: int

    def require_finite(self) -> None:
        """Raises a UserError if some samples aren't finite."""
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
    """Runs chains batch by batch, with a progress bar, and writes their last states as they come.

    In memory there are one batch and the frames, whatever the number of samples and of steps.

    Args:
      path: the `.npy` file, float32, `(*counts, *shape)`.
      settings: how they are drawn, by name; `settings.json` beside the file says it.
      run: from the numbers of a batch to its states.
      numbers: the batches.
      num_steps: how many states follow the first.
      counts: how many samples there are, by the axes that they have in the file.
      shape: of one sample.
      shown: the numbers of those of which frames are kept, ascending.
    """
    partial = path.with_name(path.name + ".partial")
    file = np.lib.format.open_memmap(partial, "w+", np.float32, (*counts, *shape))
    with partial.open("r+b") as whole:  # on a full disk, an error here and not a bus error later
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
    """A picture of the first `count` samples of the seed; None if it is unwanted before it is drawn."""
    (numbers,) = batches(count, count)
    last = collections.deque(maxlen=1)
    for x in draw(score_fn, shape, sigmas, settings, numbers, transform=transform):
        last.append(jax.block_until_ready(x))
        if is_unwanted():
            return None
    return viz.pictures([rows(last[0])[:count]])[0]


def rows(x: Float[Array, "devices batch *event"]) -> Float[np.ndarray, "n *event"]:
    """The samples of a batch, one after the other, in the host's memory."""
    return np.asarray(x).reshape(-1, *x.shape[2:])


def pmapped(function: Callable, in_axes: tuple[int | None, ...]) -> Callable:
    """A function of one chain as one of `(devices, batch)` chains.

    A sample is drawn by one process: it runs on its own devices, whatever others there are.
    """
    mapped = jax.pmap(jax.vmap(function, in_axes), in_axes=in_axes, devices=jax.local_devices())
    if jax.local_device_count() > 1:  # jit refuses what pmap takes: a network that lies on one of them
        return mapped
    return jax.jit(mapped, compiler_options=inference_options())


# An observation that may be None never stands alone: jax 0.12's pmap may take an argument without arrays for
# one with, and split the network's over the devices.


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
