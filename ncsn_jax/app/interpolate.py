"""The application's interpolation: rows of images that pass from one to another, written to files."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ncsn_jax.app.build import dataset_info, load_dataset
from ncsn_jax.app.conditions import asked_of, asked_of_restorations
from ncsn_jax.app.config import Config
from ncsn_jax.app.methods import guidance_of, interpolation_of, recipe_of, sampler_of
from ncsn_jax.app.observations import chosen_images, require_images, restoration_key
from ncsn_jax.app.restore import (
    MAX_IMAGES,
    described_settings,
    write_rows,
)
from ncsn_jax.app.samples_file import SAMPLES, write_batches
from ncsn_jax.data import expected_image
from ncsn_jax.interpolation import slerp
from ncsn_jax.models.score_fn import NetworkScore
from ncsn_jax.runtime.batch_size import chains_at_once
from ncsn_jax.runtime.chains import Given, batches, chains, first_states
from ncsn_jax.runtime.errors import UserError


def interpolate(directory: Path, score_fn: NetworkScore, config: Config, images: str | None) -> None:
    """Draw rows of images that pass from one to another, and write them.

    `samples.npy` holds the rows, `(rows, num_interpolations, height, width, channels)`; `grid.png` shows
    them, and `annealing.gif` their states on the way. Through noise, a row passes between samples; through
    latents, from one of the given images to the next, and `latents.npy` holds the images' latents.

    Args:
      directory: the directory of the files; created if necessary.
      score_fn: the network.
      config: the run's config; `restoration` holds the path, the number of rows and their length.
      images: through latents, the images, as `ncsn_jax.data.chosen_images` reads them.

    Raises:
      UserError: if the images or the settings don't fit.
    """
    info = dataset_info(config)
    require_images("interpolate", info, config.data.name)
    if config.restoration.through == "noise":
        _through_noise(directory, score_fn, config, info, images)
    else:
        _through_latents(directory, score_fn, config, info, images)


def _through_noise(directory, score_fn, config, info, images) -> None:
    if images is not None:
        raise UserError("--images isn't read with config.restoration.through='noise'; accepted: 'latents'")
    if config.sampling.method != "annealed":
        raise UserError(
            f"config.sampling.method={config.sampling.method!r}: interpolation through noise is annealed "
            "Langevin dynamics; accepted: 'annealed', or config.restoration.through=latents"
        )
    shape, transform = info.shape, info.transform
    rows, length = config.restoration.num_samples, config.restoration.num_interpolations
    recipe = recipe_of(config.sampling, config.model.noise_levels, info)
    sampler = interpolation_of(config.sampling, config.model.noise_levels)
    batch_size = chains_at_once(config.sampling.batch_size, score_fn.model, shape)
    asked = asked_of(config, lambda: load_dataset(config).train_conditions)

    def run(numbers):
        given = Given(condition=None if asked is None else asked.of(numbers))
        keys = jax.vmap(jax.vmap(lambda row: restoration_key(config, row, 0)))(numbers)
        keys, x = first_states(keys, recipe)
        x = jnp.broadcast_to(x[:, :, None], (*x.shape[:2], length, *shape))
        return map(transform.inverse, chains(sampler, keys, score_fn, x, given, recipe.guidance))

    directory.mkdir(parents=True, exist_ok=True)
    described = described_settings(config, images)
    written = write_batches(
        directory / SAMPLES,
        described,
        run,
        batches(rows, max(1, batch_size // length)),
        num_steps=sampler.num_steps,
        counts=(rows,),
        shape=(length, *shape),
        shown=np.arange(min(rows, MAX_IMAGES)),
    )
    (directory / "latents.npy").unlink(missing_ok=True)  # left by an earlier call with other settings
    labels = None if asked is None else asked.labels(np.arange(len(written.frames[0])).repeat(length))
    channels = config.sampling.shown_channels
    write_rows(directory, written.frames, info=info, channels=channels, labels=labels)
    written.require_finite()


def _through_latents(directory, score_fn, config, info, images) -> None:
    if score_fn.sigmas is not None:
        raise UserError(
            "config.restoration.through='latents' needs scores at any σ, found "
            f"model.name={config.model.name!r}, which embeds discrete levels; accepted: 'noise'"
        )
    if images is None:
        raise UserError("config.restoration.through='latents' needs --images: at least two, such as 0:4")
    transform = info.transform
    pictures = expected_image(info)(chosen_images(config, images, info.shape))
    if len(pictures) < 2:
        raise UserError(f"--images={images}: found one image; interpolation needs at least two")
    settings = config.sampling.model_copy(update={"method": "ode", "denoise": False})
    down = sampler_of(settings, config.model.noise_levels)
    up = down._replace(levels=down.levels[::-1])
    batch_size = chains_at_once(settings.batch_size, score_fn.model, info.shape)
    asked = asked_of_restorations(config)
    if asked is not None and len(asked.conditions) > 1:
        raise UserError(
            f"config.sampling.condition={settings.condition!r}: a path through latents has one condition; "
            "accepted: one class, or one vector"
        )
    length, described = config.restoration.num_interpolations, described_settings(config, images)

    def follow(name, sampler, x, counts, inverse, num_shown=0):
        def run(numbers):
            keys = jax.random.split(jax.random.key(0), numbers.shape)  # the flow draws nothing
            first = jnp.asarray(x)[np.minimum(numbers, len(x) - 1)]
            given = Given(condition=None if asked is None else asked.of(numbers))
            return map(inverse, chains(sampler, keys, score_fn, first, given, guidance_of(settings)))

        return write_batches(
            directory / name,
            described,
            run,
            batches(len(x), batch_size),
            num_steps=sampler.num_steps,
            counts=counts,
            shape=info.shape,
            shown=np.arange(min(len(x), num_shown)),
        )

    directory.mkdir(parents=True, exist_ok=True)
    clean = transform.forward(pictures)
    follow("latents.npy", up, clean, (len(clean),), lambda x: x).require_finite()
    latents = jnp.asarray(np.load(directory / "latents.npy"))
    arcs = jax.vmap(functools.partial(slerp, num_points=length))(latents[:-1], latents[1:])
    rows = len(arcs)
    written = follow(
        SAMPLES,
        down,
        arcs.reshape(-1, *info.shape),
        (rows, length),
        transform.inverse,
        MAX_IMAGES * length,
    )
    frames = [frame.reshape(-1, length, *info.shape) for frame in written.frames]
    labels = None if asked is None else asked.labels(np.arange(len(frames[0])).repeat(length))
    write_rows(directory, frames, info=info, channels=settings.shown_channels, labels=labels)
    written.require_finite()
