"""The application's restoration: from images to observations, to restorations, to files."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from ncsn_jax.app.array_pictures import announced
from ncsn_jax.app.build import dataset_info
from ncsn_jax.app.conditions import EACH, asked_of_restorations
from ncsn_jax.app.config import Config
from ncsn_jax.app.methods import recipe_of
from ncsn_jax.app.observations import Pictures, observe, restoration_key
from ncsn_jax.app.samples_file import SAMPLES, write_batches
from ncsn_jax.data import DatasetInfo
from ncsn_jax.models.score_fn import NetworkScore
from ncsn_jax.operators import Mask
from ncsn_jax.runtime import viz
from ncsn_jax.runtime.batch_size import chains_at_once
from ncsn_jax.runtime.chains import Given, batches, chains, first_states, score_given
from ncsn_jax.samplers import Sampler, denoised
from ncsn_jax.training.description import flatten

EARLIER = ("originals.npy", "observations.npy", "means.npy", "annealing.gif")

MAX_IMAGES, MAX_RESTORATIONS = 10, 8
"""Largest numbers of images, and of restorations of each, in the picture and the animation."""


def restore(directory: Path, mode: str, score_fn: NetworkScore, config: Config, images: str | None) -> None:
    """Restore images from their observations with the config's sampler, and write the results.

    `samples.npy` holds the restorations, `(images, num_samples, height, width, channels)`, and is written
    batch by batch; `observations.npy` the observations; `originals.npy` the images, if they were given; and
    `means.npy`, for `denoise` with a network for any σ, the expectations E[x₀ | y]. `grid.png` shows them
    side by side, one row per image, and `annealing.gif` the restorations on the way from noise. If σ_y = 0,
    every restoration agrees with its observation up to rounding.

    Args:
      directory: the directory of the files; created if necessary.
      mode: `inpaint`, `colorize`, `superres`, `denoise`, `deblur` or `restore`.
      score_fn: the network.
      config: the run's config; `restoration` describes the observations, `sampling` the sampler.
      images: the images, as `chosen_images` reads them.

    Raises:
      UserError: if the images or the settings don't fit; or, after all files are written, if some
        restorations aren't finite.
    """
    info, num_samples = dataset_info(config), config.restoration.num_samples
    transform, shape = info.transform, info.shape
    originals, y, observation = observe(mode, config, info, images)
    count = len(observation.y)
    recipe = recipe_of(config.sampling, config.model.noise_levels, info)
    sampler = recipe.sampler if config.restoration.noise else _agreeing(recipe.sampler)
    batch_size = chains_at_once(config.sampling.batch_size, score_fn.model, shape)
    asked = asked_of_restorations(config)

    def asks(numbers):
        # `each` gives an image's restorations the classes in turn; a file has a condition for each image.
        return numbers % num_samples if config.sampling.condition == EACH else numbers // num_samples

    def run(numbers):
        image = np.minimum(numbers // num_samples, count - 1)
        condition = None if asked is None else asked.of(asks(numbers))
        keys = jax.vmap(jax.vmap(functools.partial(restoration_key, config)))(
            image, 1 + numbers % num_samples
        )
        keys, x = first_states(keys, recipe)
        given = Given(jax.tree.map(lambda leaf: leaf[image], observation), condition)
        return map(transform.inverse, chains(sampler, keys, score_fn, x, given, recipe.guidance))

    directory.mkdir(parents=True, exist_ok=True)
    described = described_settings(config, images)
    shown = {} if originals is None else {"originals": originals}
    if (visible := _visible(y, observation.operator, info)) is not None:
        shown["observations"] = visible
    has_means = config.sampling.condition != EACH and observation.noise_std.ndim == 1
    if mode == "denoise" and score_fn.sigmas is None and has_means:
        condition = None if asked is None else asked.of(np.arange(count))
        means = jax.lax.map(
            lambda given: denoised(
                score_given(score_fn, recipe.guidance, Given(condition=given.condition)),
                given.observation.y,
                given.observation.noise_std,
            ),
            Given(observation, condition),
            batch_size=batch_size,
        )
        shown["means"] = np.asarray(transform.inverse(means))
    length = min(num_samples, MAX_RESTORATIONS)
    numbers = (np.arange(min(count, MAX_IMAGES))[:, None] * num_samples + np.arange(length)).ravel()
    written = write_batches(
        directory / SAMPLES,
        described,
        run,
        batches(count * num_samples, batch_size),
        num_steps=sampler.num_steps,
        counts=(count, num_samples),
        shape=shape,
        shown=numbers,
    )
    for name in EARLIER:
        (directory / name).unlink(missing_ok=True)
    for name, images_of_name in (shown | {"observations": y}).items():
        np.save(directory / f"{name}.npy", images_of_name)
    frames = [frame.reshape(-1, length, *shape) for frame in written.frames]
    labels = None if asked is None else asked.labels(asks(numbers))
    channels = config.sampling.shown_channels
    write_rows(directory, frames, list(shown.values()), info=info, channels=channels, labels=labels)
    written.require_finite()


def described_settings(config: Config, images: str | None) -> dict[str, Any]:
    """Return the settings that, with the network, decide the restorations."""
    groups = {name: getattr(config, name).model_dump() for name in ("sampling", "restoration")}
    return flatten(groups) | {"images": images}


def write_rows(
    directory: Path,
    frames: list[Float[np.ndarray, "rows length height width channels"]],
    columns: list[Pictures] | None = None,
    *,
    info: DatasetInfo,
    channels: tuple[int, ...] | None,
    labels: list[str] | None = None,
) -> None:
    """Write rows of images as `grid.png`, and their states at several steps as `annealing.gif`.

    Args:
      directory: the directory of the files.
      frames: the rows at several steps; the last one is the result.
      columns: constant images in front of every row.
      info: whether these are images or arrays.
      channels: the channels of arrays that are shown (see `Sampling.shown_channels`).
      labels: the text under each image of the rows; None for none.
    """
    first = [np.asarray(column)[: len(frames[0]), None] for column in columns or []]
    grids = [np.concatenate([*first, frame], axis=1) for frame in frames]
    length = grids[0].shape[1]
    images = [rows.reshape(-1, *rows.shape[2:]) for rows in grids]
    if info.num_values is None:
        images = announced(directory, images, channels)
    if labels is not None:
        of_rows = np.array_split(labels, len(grids[0]))
        labels = [label for row in of_rows for label in [*[""] * len(first), *row.tolist()]]
    pictures = [viz.image_grid(of_frame, columns=length, labels=labels) for of_frame in images]
    viz.save_png(directory / "grid.png", pictures[-1])
    viz.save_gif(directory / "annealing.gif", pictures)


def _agreeing(sampler: Sampler) -> Sampler:
    """Return the sampler with its results projected, so that they agree with their observations."""

    def finish(score_fn, x):
        x = sampler.finish(score_fn, x) if sampler.finish else x
        return score_fn.observation.project(x)

    return sampler._replace(finish=finish)


def _visible(y: np.ndarray, operator: Any, info: DatasetInfo) -> Pictures | None:
    """Return observations as pictures of the images' shape, unknown pixels grey; None if they are none."""
    shape, is_array = info.shape, info.num_values is None
    if isinstance(operator, Mask):
        return np.where(operator.mask, y, np.nan if is_array else 0.5)
    height, width, channels = shape
    if np.iscomplexobj(y) or y.ndim != 4 or y.shape[3] not in (1, channels):
        return None
    blocks = height // y.shape[1]
    if (height, width) != (blocks * y.shape[1], blocks * y.shape[2]):
        return None
    return np.broadcast_to(y.repeat(blocks, axis=1).repeat(blocks, axis=2), (len(y), *shape))
