"""Samples of a network, written to files, and pictures of a few of them."""

import collections
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from ncsn_jax.app.array_pictures import announced, as_images
from ncsn_jax.app.conditions import EACH, Asked
from ncsn_jax.app.config import Sampling
from ncsn_jax.app.methods import recipe_of
from ncsn_jax.app.samples_file import SAMPLES, write_batches
from ncsn_jax.data import DatasetInfo
from ncsn_jax.models.score_fn import NetworkScore
from ncsn_jax.runtime import viz
from ncsn_jax.runtime.batch_size import chains_at_once
from ncsn_jax.runtime.chains import Recipe, batches, draw, rows
from ncsn_jax.training.description import flatten

MAX_IMAGES, MAX_POINTS = 100, 5_000
"""Largest numbers of samples in the picture and the animation."""


def write_samples(
    directory: Path,
    score_fn: NetworkScore,
    info: DatasetInfo,
    sigmas: tuple[float, ...],
    settings: Sampling,
    asked: Asked | None = None,
) -> None:
    """Draw `settings.num_samples` samples and write them, with a progress bar.

    `samples.npy` holds all samples, `(num_samples, *shape)`, float32, unclipped, and is written batch by
    batch. `settings.json` holds the settings. `grid.png` shows the first samples (100 images or 5,000
    points), and `annealing.gif` their states on the way from noise. If samples have conditions,
    `conditions.npy` holds them, or `conditions.npz` their parts, in the units of the data.

    Args:
      directory: the directory of the files; created if necessary.
      score_fn: the network.
      info: the shape of a sample, and the network's space.
      sigmas: the noise levels, descending.
      settings: the number of samples, the method and its parameters.
      asked: the conditions of the samples; None for the null condition.

    Raises:
      UserError: if the settings don't fit the levels; or, after all files are written, if some samples aren't
        finite.
    """
    recipe = recipe_of(settings, sigmas, info, asked and asked.of)
    directory.mkdir(parents=True, exist_ok=True)
    written = write_batches(
        directory / SAMPLES,
        flatten({"sampling": settings.model_dump()}),
        lambda numbers: draw(score_fn, recipe, numbers),
        batches(settings.num_samples, chains_at_once(settings.batch_size, score_fn.model, info.shape)),
        num_steps=recipe.sampler.num_steps,
        counts=(settings.num_samples,),
        shape=info.shape,
        shown=np.arange(MAX_IMAGES if len(info.shape) in (2, 3) else MAX_POINTS),
    )
    frames = written.frames
    if info.num_values is None and len(info.shape) == 3:
        frames = announced(directory, frames, settings.shown_channels)
    pictures = _pictures(frames, asked, settings)
    viz.save_png(directory / "grid.png", pictures[-1])
    viz.save_gif(directory / "annealing.gif", pictures)
    _write_conditions(directory, asked, settings.num_samples)
    written.require_finite()


def _pictures(frames: list[np.ndarray], asked: Asked | None, settings: Sampling) -> list[viz.Picture]:
    """Draw states of the first samples; with `each`, a row for each class."""
    count = len(frames[-1])
    labels = None if asked is None else asked.labels(np.arange(count))
    if asked is None or labels is None or settings.condition != EACH:
        return viz.pictures(frames, labels=labels)
    columns = count // len(asked.conditions)
    if columns == 0:
        return viz.pictures(frames, labels=labels)
    order = np.arange(columns * len(asked.conditions)).reshape(columns, -1).T.ravel()
    of_classes = [frame[order] for frame in frames]
    return viz.pictures(of_classes, labels=[labels[i] for i in order], columns=columns)


def _write_conditions(directory: Path, asked: Asked | None, count: int) -> None:
    for name in ("conditions.npy", "conditions.npz"):  # left by an earlier call
        (directory / name).unlink(missing_ok=True)
    if asked is None:
        return
    conditions = asked.conditions.rows(asked.row(np.arange(count)), as_stored=True)
    if isinstance(conditions, dict):
        np.savez(directory / "conditions.npz", **conditions)
    else:
        np.save(directory / "conditions.npy", conditions)


def preview(
    score_fn: NetworkScore,
    recipe: Recipe,
    count: int,
    *,
    channels: tuple[int, ...] | None = None,
    after_step: Callable[[], None] = lambda: None,
) -> viz.Picture:
    """Return a picture of the first `count` samples; `after_step` is called after each step."""
    (numbers,) = batches(count, count)
    last = collections.deque(maxlen=1)
    for x in draw(score_fn, recipe, numbers):
        last.append(jax.block_until_ready(x))
        after_step()
    drawn = [rows(last[0])[:count]]
    if not recipe.is_image and len(recipe.shape) == 3:
        drawn, _ = as_images(drawn, channels)
    return viz.pictures(drawn)[0]
