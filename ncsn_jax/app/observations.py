"""The application's observations, made from images or arrays by the settings."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Key

from ncsn_jax import data
from ncsn_jax.app.build import load_dataset
from ncsn_jax.app.config import Config, Restoration
from ncsn_jax.app.flags import flagged
from ncsn_jax.app.imports import imported
from ncsn_jax.data import DatasetInfo
from ncsn_jax.data.folder import read_images
from ncsn_jax.data.selected_images import read_array
from ncsn_jax.operators import BlockAverage, Compose, Convolution, Identity, Luma, Mask, Scale
from ncsn_jax.posterior import Observation
from ncsn_jax.runtime.errors import UserError, reason
from ncsn_jax.runtime.streams import stream
from ncsn_jax.typing import PRNGKey

Pictures = Float[np.ndarray, "n height width channels"]
Values = np.ndarray
"""Observed values of n images, real or complex, `(n, *shape of A x)`."""


def restoration_key(config: Config, image: Int[ArrayLike, ""], number: Int[ArrayLike, ""]) -> PRNGKey:
    """Return the key of an image's restoration with this number, from 1; number 0 is for its observation."""
    key = jax.random.fold_in(stream(config.sampling.seed, "restoration"), image)
    return jax.random.fold_in(key, number)


def observe(
    mode: str, config: Config, info: DatasetInfo, images: str | None
) -> tuple[Pictures | None, Values, Observation]:
    """Return the chosen images, unless they are observations already, and their observations.

    Args:
      mode: a mode that restores.
      config: the run's config.
      info: the shape of an image, and the network's space.
      images: the images, as `chosen_images` reads them, or observations.

    Returns:
      The originals, or None, and the observed values, both in the units of the data (images: [0, 1]); and the
      observations in the network's space, with an axis of images in each leaf.

    Raises:
      UserError: if the images or the settings don't fit.
    """
    settings = config.restoration
    _check(mode, config, info)
    originals = None
    if settings.given == "originals":
        given = originals = _in_units(info, chosen_images(config, images, info.shape))
    elif mode == "restore":
        if images is None:
            raise UserError("--images: --mode restore with restoration.given=observations needs a .npy file")
        given = read_array(Path(images))
    else:
        shape = _observed_shape(mode, settings, info.shape)
        given = _in_units(info, chosen_images(config, images, shape, are_originals=False))
    count = len(given)
    keys = jax.vmap(lambda image: jax.random.split(restoration_key(config, image, 0)))(jnp.arange(count))
    operator = _operator(mode, config, keys[:, 0], info.shape)
    see = jax.vmap(lambda operator, x: operator(x))
    seen = _shape_of_seen(see, operator, count, info.shape, settings)
    if originals is None and given.shape[1:] != seen.shape:
        raise UserError(
            f"--images={images}: found observations of the shape {given.shape[1:]}; accepted: {seen.shape}, "
            "the shape of A x"
        )
    noise = _noise(settings, info, seen.shape)
    y = jnp.asarray(given)
    if originals is not None:
        draw = jax.vmap(lambda key: jax.random.normal(key, seen.shape, seen.dtype))
        # A complex normal number has ½ of its variance in each part.
        unit = np.sqrt(2.0) if jnp.iscomplexobj(seen) else 1.0
        y = see(operator, y) + jnp.asarray(noise * unit, jnp.float32) * draw(keys[:, 1])
    if mode == "inpaint":
        y = see(operator, y)  # without noise in the unknown pixels
    if np.ndim(noise) or mode == "restore":
        # Entries that are NaN, or have infinite noise, were not measured.
        lost = jnp.isnan(y) | jnp.isinf(jnp.broadcast_to(noise, y.shape))
        noise = jnp.where(lost, jnp.inf, noise) if lost.any() else noise
        y = jnp.where(lost, jnp.nan, y)
    if config.data.transform == "logit":  # which inpaints without noise
        observation = Observation(info.transform.forward(y), operator, jnp.zeros(count))
    else:
        observation = _in_network_space(mode, operator, y, noise, info)
    return originals, np.asarray(y), observation


def chosen_images(
    config: Config, images: str | None, shape: tuple[int, ...], *, are_originals: bool = True
) -> Pictures:
    """Return the images of `--images`, in [0, 1] or, for arrays, in the units of the data.

    Original images are cropped and resized like the run's data.
    """
    fitted = {"crop": config.data.crop, "fit": config.data.fit} if are_originals else None
    with flagged("--"):
        return data.chosen_images(
            images, shape, load_dataset=functools.partial(load_dataset, config), fitted=fitted
        )


def require_images(mode: str, info: DatasetInfo, name: str) -> None:
    """Check that a mode for images gets a run on images, or on arrays with a height and a width."""
    if len(info.shape) != 3:
        verb = "draws" if mode == "interpolate" else "restores"
        raise UserError(f"--mode {mode} {verb} images; config.data.name={name!r} are points")


def _in_units(info: DatasetInfo, pictures: Pictures) -> Pictures:
    """Return pictures in the units of samples: images as the means of their dequantizations."""
    return np.asarray(data.expected_image(info)(pictures), np.float32)


def _noise(
    settings: Restoration, info: DatasetInfo, seen: tuple[int, ...]
) -> float | Float[np.ndarray, "..."]:
    """Return σ_y, in the units of samples: a number, or a map of the shape of A x."""
    # The setting is relative to the range of pictures, which dequantization changes.
    black, white = data.expected_image(info)(np.array([0.0, 1.0]))
    if not isinstance(settings.noise, str):
        return settings.noise * float(white - black)
    noise = read_array(Path(settings.noise)) * float(white - black)
    if noise.shape != seen or np.iscomplexobj(noise) or not (noise >= 0).all():
        raise UserError(
            f"config.restoration.noise={settings.noise!r}: found {noise.dtype} of the shape {noise.shape}; "
            f"accepted: standard deviations, at least 0, of the shape of one observation, {seen}"
        )
    return noise


def _in_network_space(mode: str, operator: Any, y: Array, noise: Any, info: DatasetInfo) -> Observation:
    """Return the observations of the network's x: samples are a x + b, so y − A b observes A a."""
    zero = info.transform.inverse(jnp.zeros(info.shape))
    factors = np.asarray(info.transform.inverse(jnp.ones(info.shape)) - zero)[0, 0]
    y = y - jax.vmap(lambda operator, x: operator(x))(operator, jnp.broadcast_to(zero, (len(y), *zero.shape)))
    if np.ptp(factors) == 0:
        factors = factors[0]
    elif mode == "restore":
        scale = Scale(np.broadcast_to(factors, (len(y), len(factors))))
        operator, factors = Compose(operator, scale), 1.0
    if np.ndim(factors):  # by channel
        factors = np.reshape(factors, [1] * (y.ndim - 1) + [-1])
        noise = np.broadcast_to(noise, np.broadcast_shapes(np.shape(noise), factors.shape))
    noise = jnp.asarray(noise / factors, jnp.float32)
    of_all = (len(y), *(noise.shape[1:] if noise.ndim == y.ndim else noise.shape))
    return Observation(y / factors, operator, jnp.broadcast_to(noise, of_all))


def _shape_of_seen(
    see: Callable, operator: Any, count: int, shape: tuple[int, ...], settings: Restoration
) -> jax.ShapeDtypeStruct:
    """Return the shape of A x, for one image."""
    try:
        seen = jax.eval_shape(see, operator, jax.ShapeDtypeStruct((count, *shape), jnp.float32))
    except Exception as error:  # the user's code
        raise UserError(
            f"config.restoration.operator={settings.operator!r}: can't be applied to x of the shape {shape} "
            f"({reason(error)})"
        ) from error
    if not isinstance(seen, jax.ShapeDtypeStruct):
        raise UserError(
            f"config.restoration.operator={settings.operator!r}: accepted: a function to one array"
        )
    return jax.ShapeDtypeStruct(seen.shape[1:], seen.dtype)


def _observed_shape(mode: str, settings: Restoration, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an observation of our own operators."""
    height, width, channels = shape
    observed = {
        "colorize": (height, width, 1),
        "superres": (height // settings.factor, width // settings.factor, channels),
    }
    return observed.get(mode, shape)


def _check(mode: str, config: Config, info: DatasetInfo) -> None:
    settings, shape = config.restoration, info.shape
    require_images(mode, info, config.data.name)
    height, width, channels = shape
    if mode == "colorize" and (channels != 3 or info.num_values is None):
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
    if mode == "restore" and settings.operator is None:
        raise UserError(
            "config.restoration.operator=None: --mode restore needs the import path of an operator, such as "
            "my_package.telescope:operator"
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
    if mode == "deblur":
        return _for_each(Convolution(point_spread_function(settings.psf, shape)), len(keys))
    if mode == "restore":
        assert settings.operator is not None
        operator: Any = imported("config.restoration.operator", settings.operator)
        is_tree = not jax.tree_util.all_leaves([operator])
        return _for_each(operator if is_tree else jax.tree_util.Partial(operator), len(keys))
    return {
        "colorize": Luma,
        "superres": functools.partial(BlockAverage, settings.factor),
        "denoise": Identity,
    }[mode]()


def _for_each(operator: Any, count: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *jnp.shape(leaf))), operator)


def point_spread_function(psf: str, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """Return a point-spread function: `gaussian:σ`, with σ in pixels, or an array in a file.

    Raises:
      UserError: if it is neither, or doesn't fit images of the shape.
    """
    name, _, std = psf.partition(":")
    if name == "gaussian":
        try:
            sigma = float(std)
        except ValueError:
            sigma = 0.0
        if not 0 < sigma < np.inf:
            raise UserError(
                f"config.restoration.psf={psf!r}: accepted: a positive number, as in gaussian:1.5"
            )
        radii = [min(math.ceil(4 * sigma), (size - 1) // 2) for size in shape[:2]]
        rows, columns = (np.arange(-radius, radius + 1) for radius in radii)
        values = np.exp(-np.add.outer(rows**2, columns**2) / (2 * sigma**2))
        return (values / values.sum()).astype(np.float32)
    values = read_array(Path(psf))
    if np.iscomplexobj(values) or not np.isfinite(values).all():
        raise UserError(
            f"config.restoration.psf={psf!r}: found {values.dtype}; accepted: finite real numbers"
        )
    try:
        jax.eval_shape(Convolution(values), jax.ShapeDtypeStruct(shape, jnp.float32))
    except ValueError as error:
        raise UserError(f"config.restoration.psf={psf!r}: {error}") from error
    return values.astype(np.float32)


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
