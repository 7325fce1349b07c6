"""Annealed Langevin dynamics as the application runs it: many samples, level by level, to files.

The levels are a Python loop over one compiled `langevin_dynamics`, for progress and animation frames; the
result equals `ncsn_jax.langevin.annealed_langevin_dynamics` (a test holds the two together).
"""

import collections
import functools
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Key
from tqdm import tqdm

from ncsn_jax import viz
from ncsn_jax.config import Sampling
from ncsn_jax.data.preprocessing import TRANSFORMS, Transform
from ncsn_jax.langevin import denoised, langevin_dynamics, level_step_size
from ncsn_jax.models.score_fn import NetworkScore
from ncsn_jax.streams import stream

IDENTITY = TRANSFORMS["none"]
MAX_SHOWN = {3: 100, 1: 5_000}
"""The most samples that the picture and the animation show, of images and of vectors, by their axes."""
MAX_FRAMES = 60
"""The most frames of an animation; schedules with more levels skip some."""


def annealing(
    keys: Key[Array, "devices batch"],
    score_fn: NetworkScore,
    shape: tuple[int, ...],
    sigmas: tuple[float, ...],
    settings: Sampling,
    transform: Transform = IDENTITY,
) -> Iterator[Float[Array, "devices batch *event"]]:
    """Anneals one batch from uniform noise, and yields its states: the first, then one after every level.

    With `denoise` the last one is the denoised mean in place of the last state.

    Args:
      keys: one key a sample; it decides the sample, wherever and beside whatever that is drawn.
      score_fn: the network.
      shape: of one sample: (height, width, channels), or (D,).
      sigmas: the noise levels, descending.
      settings: the step size, the steps and the temperature.
      transform: from images in [0, 1] to what the network was trained on; the first state is a uniform image.
    """
    run_level = _pmapped_level(settings.steps_per_scale)
    levels = jnp.asarray(sigmas)
    x = _pmapped_start(shape, transform)(keys)
    yield x
    for level in range(len(levels)):
        step_size = level_step_size(settings.step_size, levels[level], levels)
        x = run_level(keys, score_fn, x, level, levels[level], step_size, settings.temperature)
        if settings.denoise and level == len(levels) - 1:
            x = _pmapped_denoised()(score_fn, x, levels[level])
        yield x


def draw(
    score_fn: NetworkScore,
    shape: tuple[int, ...],
    sigmas: tuple[float, ...],
    settings: Sampling,
    *,
    transform: Transform = IDENTITY,
    first: int = 0,
) -> Iterator[Float[Array, "devices batch *event"]]:
    """The states (see `annealing`) of a batch of samples: number `first` of the seed and the next ones.

    They are transformed back: images are in [0, 1], but for what noise adds.
    The batch is `settings.batch_size`, or slightly more where the devices don't divide it.
    """
    devices = jax.local_device_count()
    per_device = -(-settings.batch_size // devices)
    numbers = first + jnp.arange(devices * per_device).reshape(devices, per_device)
    fold_in = functools.partial(jax.random.fold_in, stream(settings.seed, "sampling"))
    keys = jax.vmap(jax.vmap(fold_in))(numbers)
    return map(transform.inverse, annealing(keys, score_fn, shape, sigmas, settings, transform))


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
    `grid.png` and `annealing.gif` show the first of them (100 images, 5,000 points) and their way there.

    Args:
      directory: where to; made if need be.
      score_fn: the network.
      shape: of one sample: (height, width, channels), or (D,).
      sigmas: the noise levels, descending.
      settings: how many, and how they are drawn.
      transform: from images in [0, 1] to what the network was trained on, and back.
    """
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / "samples.npy.partial"
    count = settings.num_samples
    settings = settings.model_copy(update={"batch_size": min(settings.batch_size, count)})
    samples = np.lib.format.open_memmap(partial, "w+", np.float32, (count, *shape))
    num_levels, most_shown = len(sigmas), MAX_SHOWN[len(shape)]
    every = -(-num_levels // MAX_FRAMES)
    frames = {level: [] for level in range(num_levels, -1, -every)}
    batch = len(_rows(next(draw(score_fn, shape, sigmas, settings, transform=transform))))
    starts = range(0, count, batch)
    with tqdm(total=len(starts) * num_levels, unit="level", desc=f"{count} samples") as bar:
        for start in starts:
            states = draw(score_fn, shape, sigmas, settings, transform=transform, first=start)
            for level, x in enumerate(states):
                jax.block_until_ready(x)
                if level in frames and start < most_shown:
                    frames[level].append(_rows(x)[:most_shown])
                if level == num_levels:
                    samples[start : start + batch] = _rows(x)[: count - start]
                bar.update(min(level, 1))
    samples.flush()
    partial.rename(directory / "samples.npy")

    shown = min(count, most_shown)
    pictures = viz.pictures([np.concatenate(frames[level])[:shown] for level in sorted(frames)])
    viz.save_png(directory / "grid.png", pictures[-1])
    viz.save_gif(directory / "annealing.gif", pictures)


def preview(
    score_fn: NetworkScore,
    shape: tuple[int, ...],
    sigmas: tuple[float, ...],
    settings: Sampling,
    count: int,
    *,
    transform: Transform = IDENTITY,
) -> viz.Picture:
    """A picture of the first `count` samples of the seed."""
    settings = settings.model_copy(update={"batch_size": count})
    states = collections.deque(draw(score_fn, shape, sigmas, settings, transform=transform), maxlen=1)
    return viz.pictures([_rows(states[0])[:count]])[0]


def _rows(x: Float[Array, "devices batch *event"]) -> Float[np.ndarray, "n *event"]:
    return np.asarray(x).reshape(-1, *x.shape[2:])


# A sample is drawn by one process: these run on its own devices, whatever others there are.


@functools.cache
def _pmapped_start(shape, transform):
    def start(key):
        return transform.forward(jax.random.uniform(jax.random.split(key)[0], shape))

    return jax.pmap(jax.vmap(start), devices=jax.local_devices())


@functools.cache
def _pmapped_level(num_steps):
    def run_level(key, score_fn, x, level, sigma, step_size, temperature):
        return langevin_dynamics(
            jax.random.fold_in(jax.random.split(key)[1], level),
            lambda x: score_fn(x, sigma),
            x,
            step_size=step_size,
            num_steps=num_steps,
            temperature=temperature,
        )

    in_axes = (0, None, 0, None, None, None, None)
    return jax.pmap(jax.vmap(run_level, in_axes), in_axes=in_axes, devices=jax.local_devices())


@functools.cache
def _pmapped_denoised():
    in_axes = (None, 0, None)
    return jax.pmap(jax.vmap(denoised, in_axes), in_axes=in_axes, devices=jax.local_devices())
