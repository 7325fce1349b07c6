"""Restoration as the application runs it: from images to observations, to restorations, to files."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Key

from ncsn_jax import data, sampling, viz
from ncsn_jax.batch_size import chains_at_once
from ncsn_jax.config import Config, Restoration, flatten
from ncsn_jax.data.folder import read_images
from ncsn_jax.errors import UserError
from ncsn_jax.langevin import denoised
from ncsn_jax.models.score_fn import NetworkScore
from ncsn_jax.plan import Plan, plan
from ncsn_jax.restoration import BlockAverage, Identity, Luma, Mask, Observation
from ncsn_jax.streams import stream
from ncsn_jax.typing import PRNGKey

MODES = ("inpaint", "colorize", "superres", "denoise")
"""What can be restored: unknown pixels, colours, resolution, what noise hides."""

FILES = (
    "settings.json",
    "originals.npy",
    "observations.npy",
    "means.npy",
    "samples.npy",
    "grid.png",
    "annealing.gif",
)

MAX_IMAGES, MAX_RESTORATIONS = 10, 8
"""How many images, and how many restorations of each, the picture and the animation show."""

Pictures = Float[np.ndarray, "n height width channels"]


def restore(directory: Path, mode: str, score_fn: NetworkScore, config: Config, images: str | None) -> None:
    """Restores images from observations of them, by the config's sampler, and writes what comes out.

    `samples.npy` holds the restorations, `(images, num_samples, height, width, channels)`, batch by batch as
    they come; `observations.npy` what they were made from; `originals.npy` the images, if they were given;
    `means.npy`, of `denoise` by a network for any σ, their expectations E[x₀ | y]. `grid.png` shows all side
    by side, an image a row, and `annealing.gif` the way there. Where σ_y = 0, every restoration agrees with
    its observation up to rounding.

    Args:
      directory: where to; made if need be.
      mode: one of `MODES`.
      score_fn: the network.
      config: the run's; its `restoration` says what is observed, its `sampling` how it is restored.
      images: which; see `ncsn_jax.data.chosen_images`.

    Raises:
      UserError: if the images or the settings don't fit; if some restorations aren't finite, after all is
        written.
    """
    num_samples, shape = config.restoration.num_samples, data.describe(config.data).shape
    transform = data.TRANSFORMS[config.data.transform]
    originals, observation = observe(mode, config, images)
    count = len(observation.y)
    sampler = plan(config.sampling, config.model.noise_levels)
    batch_size = chains_at_once(config.sampling, score_fn.model, shape)
    if not config.restoration.noise:
        sampler = _agreeing(sampler)

    def run(numbers):
        image = np.minimum(numbers // num_samples, count - 1)
        keys = jax.vmap(jax.vmap(functools.partial(restoration_key, config)))(
            image, 1 + numbers % num_samples
        )
        keys, x = sampling.first_states(keys, shape, sampler, transform)
        seen = jax.tree.map(lambda leaf: leaf[image], observation)
        return map(transform.inverse, sampling.chains(sampler, keys, score_fn, x, seen))

    directory.mkdir(parents=True, exist_ok=True)
    described = described_settings(config, images)
    sampling.announce_replacement(directory, described)
    for name in FILES:  # of an earlier call with other settings
        (directory / name).unlink(missing_ok=True)
    y = np.asarray(transform.inverse(observation.y))
    shown = {"observations": _visible(observation.replace(y=y), shape)}
    np.save(directory / "observations.npy", y)
    if originals is not None:
        shown = {"originals": originals} | shown
        np.save(directory / "originals.npy", originals)
    if mode == "denoise" and score_fn.sigmas is None:
        means = jax.lax.map(
            lambda seen: denoised(score_fn, seen.y, seen.noise_std),
            observation,
            batch_size=batch_size,
        )
        shown["means"] = np.asarray(transform.inverse(means))
        np.save(directory / "means.npy", shown["means"])
    length = min(num_samples, MAX_RESTORATIONS)
    written = sampling.write_batches(
        directory / sampling.SAMPLES,
        described,
        run,
        sampling.batches(count * num_samples, batch_size),
        num_steps=sampler.num_steps,
        counts=(count, num_samples),
        shape=shape,
        shown=(np.arange(min(count, MAX_IMAGES))[:, None] * num_samples + np.arange(length)).ravel(),
    )
    frames = [frame.reshape(-1, length, *shape) for frame in written.frames]
    write_rows(directory, frames, list(shown.values()))
    written.require_finite()


def described_settings(config: Config, images: str | None) -> dict[str, Any]:
    """What restorations follow from, beside the network."""
    groups = {name: getattr(config, name).model_dump() for name in ("sampling", "restoration")}
    return flatten(groups) | {"images": images}


def write_rows(
    directory: Path,
    frames: list[Float[np.ndarray, "rows length height width channels"]],
    columns: list[Pictures] | None = None,
) -> None:
    """Writes rows of images as `grid.png`, and their way there as `annealing.gif`.

    Args:
      directory: where to.
      frames: the rows at several steps, the last one the result.
      columns: images that stand before every row, and don't change.
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
    """The key of one restoration of an image, counted from 1; 0 is the observation's."""
    key = jax.random.fold_in(stream(config.sampling.seed, "restoration"), image)
    return jax.random.fold_in(key, number)


def observe(mode: str, config: Config, images: str | None) -> tuple[Pictures | None, Observation]:
    """The named images, unless they are observations already, and what is observed of each.

    Args:
      mode: one of `MODES`.
      config: the run's.
      images: which; see `ncsn_jax.data.chosen_images`.

    Returns:
      The originals, in [0, 1]; and the observations, in the network's space, their leaves with an axis of
      images.

    Raises:
      UserError: if the images or the settings don't fit.
    """
    info, settings = data.describe(config.data), config.restoration
    _check(mode, config, info.shape)
    height, width, channels = info.shape
    observed = {
        "colorize": (height, width, 1),
        "superres": (height // settings.factor, width // settings.factor, channels),
    }
    are_originals = settings.given == "originals"
    shape = info.shape if are_originals else observed.get(mode, info.shape)
    expected = data.expected_image(config.data, info)
    pictures = expected(data.chosen_images(config.data, images, shape, are_originals=are_originals))
    y = jnp.asarray(data.TRANSFORMS[config.data.transform].forward(pictures))
    # The noise is in units of the pictures' range, which is stretched on its way to the network's.
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
        y = see(operator, y)  # of the unknown pixels, nothing
    return (pictures if are_originals else None), Observation(y, operator, jnp.full(len(y), noise_std))


def _check(mode: str, config: Config, shape: tuple[int, ...]) -> None:
    settings = config.restoration
    if len(shape) != 3:
        raise UserError(f"--mode {mode} restores images; config.data.name={config.data.name!r} are points")
    height, width, channels = shape
    if mode == "colorize" and channels != 3:
        raise UserError(f"--mode colorize takes a run of colour images, found images of {channels} channel")
    if mode == "superres" and (height % settings.factor or width % settings.factor):
        raise UserError(
            f"config.restoration.factor={settings.factor}: blocks of that side don't tile images of "
            f"{height}×{width} pixels; accepted: what divides both"
        )
    if mode == "denoise" and not settings.noise:
        raise UserError(
            "config.restoration.noise=0.0: --mode denoise takes the noise's standard deviation, for images "
            "in [0, 1], such as --config.restoration.noise=0.3"
        )
    if config.data.transform == "logit" and (mode != "inpaint" or settings.noise):
        raise UserError(
            f"config.data.transform='logit': --mode {mode} with config.restoration.noise={settings.noise} is "
            "not linear in the logits that the network was trained on; accepted: inpaint without noise"
        )


def _operator(mode: str, config: Config, keys: Key[Array, " n"], shape: tuple[int, ...]) -> Any:
    """A of every image: a pytree, its leaves with an axis of images."""
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
    """Where an image is known: a half, all but the centre, random pixels, or where a PNG is white.

    Raises:
      UserError: if the mask is neither of these words nor a file of images' size.
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


def _agreeing(sampler: Plan) -> Plan:
    """The sampler, whose results are moved to where they agree with their observations."""

    def finish(score_fn, x):
        x = sampler.finish(score_fn, x) if sampler.finish else x
        return score_fn.observation.project(x)

    return sampler._replace(finish=finish)


def _visible(observation: Observation, shape: tuple[int, ...]) -> Pictures:
    """Observations as pictures of the images' shape; unknown pixels are grey."""
    y = observation.y
    if isinstance(observation.operator, Mask):
        return np.where(observation.operator.mask, y, 0.5)
    blocks = shape[0] // y.shape[1]
    return np.broadcast_to(y.repeat(blocks, axis=1).repeat(blocks, axis=2), (len(y), *shape))
