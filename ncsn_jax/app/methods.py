"""Samplers, and recipes of samples, by the settings of the application."""

import functools
import math
from collections.abc import Callable
from typing import Any

from ncsn_jax import samplers
from ncsn_jax.app.config import Sampling
from ncsn_jax.data import DatasetInfo
from ncsn_jax.interpolation import interpolation_sampler
from ncsn_jax.noise import geometric_sigmas, karras_sigmas
from ncsn_jax.runtime.chains import Guidance, Numbers, Recipe
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.samplers import Sampler, denoising
from ncsn_jax.samplers.process import Event
from ncsn_jax.typing import PRNGKey, Scalar, ScoreFn

OF_CALLERS = {
    "num_samples": 1,
    "batch_size": None,
    "seed": 0,
    "ema_length": None,
    "shown_channels": None,
    "condition": None,
    "guidance": 1.0,
    "guidance_interval": None,
}
"""Settings that no sampler reads."""


def sampler_of(settings: Sampling, sigmas: tuple[float, ...]) -> Sampler:
    """Return the sampler of the settings' method; equal settings give the same object, which compiles once.

    Args:
      settings: the method and its parameters.
      sigmas: the noise levels of the model, descending.

    Raises:
      UserError: if the parameters don't fit the levels.
    """
    return _sampler_of(settings.model_copy(update=OF_CALLERS), sigmas)  # pyright: ignore[reportArgumentType]


@functools.cache
def _sampler_of(settings: Sampling, sigmas: tuple[float, ...]) -> Sampler:
    try:
        return METHODS[settings.method](settings, sigmas)
    except (OverflowError, ValueError) as error:  # levels that don't descend, or an η that doesn't fit them
        raise UserError(f"config.sampling.method={settings.method!r}: {error}") from error


@functools.cache
def interpolation_of(settings: Sampling, sigmas: tuple[float, ...]) -> Sampler:
    """Return the sampler of `ncsn_jax.interpolate`, whose states are rows of images."""
    return interpolation_sampler(sigmas, **_annealing(settings))


def recipe_of(
    settings: Sampling,
    sigmas: tuple[float, ...],
    info: DatasetInfo,
    conditions: Callable[[Numbers], Any] | None = None,
) -> Recipe:
    """Return the recipe of samples by the settings.

    The first states have the noise of the sampler's first level, except that the official code adds no noise
    for annealed Langevin dynamics.

    Args:
      settings: the method and its parameters.
      sigmas: the noise levels of the model, descending.
      info: the shape of a sample, and the network's space.
      conditions: the conditions of samples by their numbers; None for the null condition.

    Raises:
      UserError: if the parameters don't fit the levels.
    """
    sampler = sampler_of(settings, sigmas)
    noise: Any = 0.0 if settings.method == "annealed" else sampler.levels[0]
    is_image = info.num_values is not None
    return Recipe(
        sampler,
        info.shape,
        noise,
        info.transform,
        settings.seed,
        is_image,
        conditions,
        guidance_of(settings),
    )


def guidance_of(settings: Sampling) -> Guidance | None:
    """Return the settings' guidance; None for the conditional score."""
    if settings.guidance == 1:
        return None
    return Guidance(settings.guidance, settings.guidance_interval or (0.0, math.inf))


def _annealing(settings: Sampling) -> dict[str, Any]:
    names = ("step_size", "steps_per_scale", "temperature", "denoise")
    return {name: getattr(settings, name) for name in names}


def _annealed(settings: Sampling, sigmas: tuple[float, ...]) -> Sampler:
    return samplers.annealed_langevin_sampler(sigmas, **_annealing(settings))


def _consistent(settings: Sampling, sigmas: tuple[float, ...]) -> Sampler:
    return samplers.consistent_sampler(
        _geometric(settings, sigmas),
        eta=settings.eta,
        temperature=settings.temperature,
        denoise=settings.denoise,
    )


def _predictor_corrector(settings: Sampling, sigmas: tuple[float, ...]) -> Sampler:
    predictors = {
        "reverse_diffusion": samplers.reverse_diffusion,
        "euler_maruyama": samplers.euler_maruyama,
    }
    return samplers.predictor_corrector_sampler(
        _geometric(settings, sigmas),
        predictor=predictors[settings.predictor],
        corrector_steps=settings.corrector_steps,
        snr=settings.snr,
        temperature=settings.temperature,
        denoise=settings.denoise,
    )


def _probability_flow(settings: Sampling, sigmas: tuple[float, ...]) -> Sampler:
    """Return the adaptive solver in steps between the levels, where it stops for the animation."""
    rtol, atol = settings.rtol, settings.atol

    def step(key: PRNGKey, score_fn: ScoreFn, x: Event, sigma: Scalar, next_sigma: Scalar) -> Event:
        return samplers.probability_flow(score_fn, x, sigma, next_sigma, rtol=rtol, atol=atol)

    levels = _geometric(settings, sigmas)
    return Sampler(step, levels, denoising(levels[-1]) if settings.denoise else None)


def _heun(settings: Sampling, sigmas: tuple[float, ...]) -> Sampler:
    num_scales = settings.num_levels or len(sigmas)
    return samplers.heun_sampler(
        tuple(karras_sigmas(sigmas[0], sigmas[-1], num_scales, rho=settings.rho).tolist()),
        s_churn=settings.s_churn,
        s_min=settings.s_min,
        s_max=settings.s_max,
        s_noise=settings.s_noise,
    )


METHODS = {
    "annealed": _annealed,
    "consistent": _consistent,
    "pc": _predictor_corrector,
    "ode": _probability_flow,
    "heun": _heun,
}
"""Constructors of samplers by `config.sampling.method`."""


def _geometric(settings: Sampling, sigmas: tuple[float, ...]) -> tuple[float, ...]:
    if settings.num_levels is None:
        return sigmas
    return tuple(geometric_sigmas(sigmas[0], sigmas[-1], settings.num_levels).tolist())
