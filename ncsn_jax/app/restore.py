"""The application's restoration: from images to observations, to restorations, to files."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Key

from ncsn_jax import data
from ncsn_jax.app.build import dataset_info, load_dataset
from ncsn_jax.app.config import Config, Restoration
from ncsn_jax.app.flags import flagged
from ncsn_jax.app.methods import recipe_of
from ncsn_jax.app.samples_file import SAMPLES, write_batches
from ncsn_jax.data import DatasetInfo
from ncsn_jax.data.folder import read_images
from ncsn_jax.models.score_fn import NetworkScore
from ncsn_jax.posterior import BlockAverage, Identity, Luma, Mask, Observation
from ncsn_jax.runtime import viz
from ncsn_jax.runtime.batch_size import chains_at_once
from ncsn_jax.runtime.chains import batches, chains, first_states
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.runtime.streams import stream
from ncsn_jax.samplers import Sampler, denoised
from ncsn_jax.training.description import flatten
from ncsn_jax.typing import PRNGKey

EARLIER = ("originals.npy", "observations.npy", "means.npy", "annealing.gif")

MAX_IMAGES, MAX_RESTORATIONS = 10, 8
"""Largest numbers of images, and of restorations of each, in the picture and the animation."""

Pictures = Float[np.ndarray, "n height width channels"]


def restore(directory: Path, mode: str, score_fn: NetworkScore, config: Config, images: str | None) -> None:
    """Restore images from their observations with the config's sampler, and write the results.

    `samples.npy` holds the restorations, `(images, num_samples, height, width, channels)`, and is written
    batch by batch; `observations.npy` the observations; `originals.npy` the images, if they were given; and
    `means.npy`, for `denoise` with a network for any σ, the expectations E[x₀ | y]. `grid.png` shows them
    side by side, one row per image, and `annealing.gif` the restorations on the way from noise. If σ_y = 0,
    every restoration agrees with its observation up to rounding.

    Args:
      directory: the directory of the files; created if necessary.
      mode: `inpaint`, `colorize`, `superres` or `denoise`.
      score_fn: the network.
      config: the run's config; `restoration` describes the observations, `sampling` the sampler.
      images: the images, as `chosen_images` reads them.

    Raises:
      UserError: if the images or the settings don't fit; or, after all files are written, if some
        restorations aren't finite.
    """
    info, num_samples = dataset_info(config), config.restoration.num_samples
    transform, shape = info.transform, info.shape
    originals, observation = observe(mode, config, info, images)
    count = len(observation.y)
    recipe = recipe_of(config.sampling, config.model.noise_levels, info)
    sampler = recipe.sampler if config.restoration.noise else _agreeing(recipe.sampler)
    batch_size = chains_at_once(config.sampling.batch_size, score_fn.model, shape)

    def run(numbers):
        image = np.minimum(numbers // num_samples, count - 1)
        keys = jax.vmap(jax.vmap(functools.partial(restoration_key, config)))(
            image, 1 + numbers % num_samples
        )
        keys, x = first_states(keys, recipe)
        seen = jax.tree.map(lambda leaf: leaf[image], observation)
        return map(transform.inverse, chains(sampler, keys, score_fn, x, seen))

    directory.mkdir(parents=True, exist_ok=True)
    described = described_settings(config, images)
    y = np.asarray(transform.inverse(observation.y))
    shown = {"observations": _visible(observation.replace(y=y), shape)}
    if originals is not None:
        shown = {"originals": originals} | shown
    if mode == "denoise" and score_fn.sigmas is None:
        means = jax.lax.map(
            lambda seen: denoised(score_fn, seen.y, seen.noise_std),
            observation,
            batch_size=batch_size,
        )
        shown["means"] = np.asarray(transform.inverse(means))
    length = min(num_samples, MAX_RESTORATIONS)
    written = write_batches(
        directory / SAMPLES,
        described,
        run,
        batches(count * num_samples, batch_size),
        num_steps=sampler.num_steps,
        counts=(count, num_samples),
        shape=shape,
        shown=(np.arange(min(count, MAX_IMAGES))[:, None] * num_samples + np.arange(length)).ravel(),
    )
    for name in EARLIER:
        (directory / name).unlink(missing_ok=True)
    for name, images_of_name in (shown | {"observations": y}).items():
        np.save(directory / f"{name}.npy", images_of_name)
    frames = [frame.reshape(-1, length, *shape) for frame in written.frames]
    write_rows(directory, frames, list(shown.values()))
    written.require_finite()


def described_settings(config: Config, images: str | None) -> dict[str, Any]:
    """Return the settings that, with the network, decide the restorations."""
    groups = {name: getattr(config, name).model_dump() for name in ("sampling", "restoration")}
    return flatten(groups) | {"images": images}


def write_rows(
    directory: Path,
    frames: list[Float[np.ndarray, "rows length height width channels"]],
    columns: list[Pictures] | None = None,
) -> None:
    """Write rows of images as `grid.png`, and their states at several steps as `annealing.gif`.

    Args:
      directory: the directory of the files.
      frames: the rows at several steps; the last one is the result.
      columns: constant images in front of every row.
    """
    first = [np.asarray(column)[: len(frames[0]), None] for column in columns or []]
    pictures = []
    for frame in frames:
        rows = np.concatenate([*first, frame], axis=1)
        images = rows.reshape(-1, *rows.shape[2:])
        pictures.append(viz.image_grid(images, columns=rows.shape[1]))
    viz.save_png(directory / "grid.png", pictures[-1])
    viz.save_gif(directory / "annealing.gif", pictures)


def restoration_key(config: Config, image: Int[ArrayLike, ""], number: Int[ArrayLike, ""]) -> PRNGKey:
    """Return the key of an image's restoration with this number, from 1; number 0 is for its observation."""
    key = jax.random.fold_in(stream(config.sampling.seed, "restoration"), image)
    return jax.random.fold_in(key, number)


def observe(
    mode: str, config: Config, info: DatasetInfo, images: str | None
) -> tuple[Pictures | None, Observation]:
    """Return the chosen images, unless they are observations already, and their observations.

    Args:
      mode: `inpaint`, `colorize`, `superres` or `denoise`.
      config: the run's config.
      info: the shape of an image, and the network's space.
      images: the images, as `chosen_images` reads them.

    Returns:
      The originals, in [0, 1], or None; and the observations, in the network's space, with an axis of images
      in each leaf.

    Raises:
      UserError: if the images or the settings don't fit.
    """
    settings = config.restoration
    _check(mode, config, info)
    height, width, channels = info.shape
    observed = {
        "colorize": (height, width, 1),
        "superres": (height // settings.factor, width // settings.factor, channels),
    }
    are_originals = settings.given == "originals"
    shape = info.shape if are_originals else observed.get(mode, info.shape)
    expected = data.expected_image(info)
    pictures = expected(chosen_images(config, images, shape, are_originals=are_originals))
    y = jnp.asarray(info.transform.forward(pictures))
    # The setting is relative to the pictures' range, which the network's space rescales.
    black, white = expected(np.array([0.0, 1.0]))
    noise_std = settings.noise * float(white - black) * (2.0 if config.data.transform == "rescale" else 1.0)

    numbers = jnp.arange(len(y))
    keys = jax.vmap(lambda image: jax.random.split(restoration_key(config, image, 0)))(numbers)
    operator = _operator(mode, config, keys[:, 0], info.shape)
    see = jax.vmap(lambda operator, x: operator(x))
    if are_originals:
        y = see(operator, y)
        y += noise_std * jax.vmap(lambda key: jax.random.normal(key, y.shape[1:]))(keys[:, 1])
    if mode == "inpaint":
        y = see(operator, y)  # without noise in the unknown pixels
    return (pictures if are_originals else None), Observation(y, operator, jnp.full(len(y), noise_std))


def chosen_images(
    config: Config, images: str | None, shape: tuple[int, ...], *, are_originals: bool = True
) -> Pictures:
    """Return the images of `--images` in [0, 1]; originals are cropped and resized like the run's data."""
    fitted = {"crop": config.data.crop, "fit": config.data.fit} if are_originals else None
    with flagged("--"):
        return data.chosen_images(
            images, shape, load_dataset=functools.partial(load_dataset, config), fitted=fitted
        )


def require_images(mode: str, config: Config, info: DatasetInfo) -> None:
    """Check that a mode for images gets a run on images."""
    if info.num_values is None:
        verb = "draws" if mode == "interpolate" else "restores"
        raise UserError(f"--mode {mode} {verb} images; config.data.name={config.data.name!r} are points")


def _check(mode: str, config: Config, info: DatasetInfo) -> None:
    settings, shape = config.restoration, info.shape
    require_images(mode, config, info)
    height, width, channels = shape
    if mode == "colorize" and channels != 3:
        raise UserError(f"--mode colorize needs a run of colour images, found images of {channels} channel")
    if mode == "superres" and (height % settings.factor or width % settings.factor):
        raise UserError(
            f"config.restoration.factor={settings.factor}: blocks of that side don't tile images of "
            f"{height}×{width} pixels; accepted: a divisor of both"
        )
    if mode == "denoise" and not settings.noise:
        raise UserError(
            "config.restoration.noise=0.0: --mode denoise needs the standard deviation of the noise, for "
            "images in [0, 1], such as --config.restoration.noise=0.3"
        )
    if config.data.transform == "logit" and (mode != "inpaint" or settings.noise):
        raise UserError(
            f"config.data.transform='logit': --mode {mode} with config.restoration.noise={settings.noise} is "
            "not linear in the logits that the network was trained on; accepted: inpaint without noise"
        )


def _operator(mode: str, config: Config, keys: Key[Array, " n"], shape: tuple[int, ...]) -> Any:
    """Return the operator A of every image: a pytree with an axis of images in each leaf."""
    settings = config.restoration
    if mode == "inpaint":
        return Mask(jax.vmap(lambda key: known_pixels(key, settings, shape))(keys))
    return {
        "colorize": Luma,
        "superres": functools.partial(BlockAverage, settings.factor),
        "denoise": Identity,
    }[mode]()


def known_pixels(
    key: PRNGKey, settings: Restoration, shape: tuple[int, ...]
) -> Bool[Array, "height width channels"]:
    """Return the mask of known pixels: a half, all except the centre, random ones, or a PNG's white ones.

    Raises:
      UserError: if the mask is neither one of these words nor a file of the images' size.
    """
    height, width, _ = shape
    row, column = jnp.arange(height)[:, None], jnp.arange(width)[None]
    in_centre = (abs(2 * row - height + 1) < height / 2) & (abs(2 * column - width + 1) < width / 2)
    masks = {
        "left": column < width // 2,
        "right": column >= width // 2,
        "top": row < height // 2,
        "bottom": row >= height // 2,
        "centre": ~in_centre,
        "random": jax.random.bernoulli(key, settings.known, (height, width)),
    }
    if settings.mask not in masks:
        masks[settings.mask] = _mask_from_file(settings.mask, height, width, tuple(masks))
    return jnp.broadcast_to(masks[settings.mask][..., None], shape)


def _mask_from_file(mask: str, height: int, width: int, words: tuple[str, ...]) -> Bool[Array, "h w"]:
    accepted = f"accepted: {', '.join(words)}, or an image file of {height}×{width} pixels, known where white"
    try:
        pixels = read_images(mask, channels=1)
    except UserError as error:
        raise UserError(f"config.restoration.mask={mask!r}: {error}; {accepted}") from error
    if pixels.shape[:3] != (1, height, width):
        found = f"{len(pixels)} images" if len(pixels) > 1 else f"{pixels.shape[1]}×{pixels.shape[2]} pixels"
        raise UserError(f"config.restoration.mask={mask!r}: found {found}; {accepted}")
    return jnp.asarray(pixels[0, ..., 0] >= 128)


def _agreeing(sampler: Sampler) -> Sampler:
    """Return the sampler with its results projected, so that they agree with their observations."""

    def finish(score_fn, x):
        x = sampler.finish(score_fn, x) if sampler.finish else x
        return score_fn.observation.project(x)

    return sampler._replace(finish=finish)


def _visible(observation: Observation, shape: tuple[int, ...]) -> Pictures:
    """Return observations as pictures of the images' shape; unknown pixels are grey."""
    y = observation.y
    if isinstance(observation.operator, Mask):
        return np.where(observation.operator.mask, y, 0.5)
    blocks = shape[0] // y.shape[1]
    return np.broadcast_to(y.repeat(blocks, axis=1).repeat(blocks, axis=2), (len(y), *shape))
