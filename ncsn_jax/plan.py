"""Plans of samplers, made from settings: a step, the noise levels and the last operation."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ncsn_jax import samplers
from ncsn_jax.config import Sampling
from ncsn_jax.interpolation import interpolation_update
from ncsn_jax.noise import geometric_sigmas, karras_sigmas
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.samplers import denoised, langevin_dynamics, level_step_size, repeat
from ncsn_jax.typing import PRNGKey, Scalar, ScoreFn

Step = Callable[[PRNGKey, ScoreFn, Array, Scalar, Scalar], Array]
"""Function of (key, score_fn, x, σ, σ') that returns x at σ'."""


class Plan(NamedTuple):
    """Plan of a sampler.

    Attributes:
      step: the step from one level to the next.
      levels: the noise levels; step i leads from `levels[i]` to `levels[i + 1]`. The last may be 0.
      finish: the map from the score and the last state to the result; None if the last state is the result.
      noisy_start: whether noise of the first level is added to the first state, a uniform image. The official
        code adds no noise for annealed Langevin dynamics.
    """

    step: Step
    levels: tuple[float, ...]
    finish: Callable[[ScoreFn, Array], Array] | None
    noisy_start: bool

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return len(self.levels) - 1


def plan(settings: Sampling, sigmas: tuple[float, ...]) -> Plan:
    """Return the plan of the settings' method; equal settings give the same object, which compiles once.

    Args:
      settings: the method and its parameters.
      sigmas: the noise levels of the model, descending.

    Raises:
      UserError: if the parameters don't fit the levels.
    """
    irrelevant = {"num_samples": 1, "batch_size": None, "seed": 0}
    return _plan(settings.model_copy(update=irrelevant), sigmas)  # pyright: ignore[reportArgumentType]


@functools.cache
def _plan(settings: Sampling, sigmas: tuple[float, ...]) -> Plan:
    make = {"annealed": _annealed, "consistent": _consistent, "pc": _pc, "ode": _ode, "heun": _heun}
    try:
        return make[settings.method](settings, sigmas)
    except (OverflowError, ValueError) as error:  # levels that don't descend, or an η that doesn't fit them
        raise UserError(f"config.sampling.method={settings.method!r}: {error}") from error


def _annealed(settings: Sampling, sigmas: tuple[float, ...]) -> Plan:
    levels = jnp.asarray(sigmas)

    def step(key, score_fn, x, sigma, next_sigma):
        return langevin_dynamics(
            key,
            lambda x: score_fn(x, sigma),
            x,
            step_size=level_step_size(settings.step_size, sigma, levels),
            num_steps=settings.steps_per_scale,
            temperature=settings.temperature,
        )

    return Plan(step, (*sigmas, 0.0), _denoising(settings, sigmas), noisy_start=False)


def _consistent(settings: Sampling, sigmas: tuple[float, ...]) -> Plan:
    sigmas = _geometric(settings, sigmas)
    if settings.eta is not None:
        samplers.check_eta(settings.eta, sigmas)
    step = functools.partial(
        samplers.consistent_step, eta=settings.eta, temperature=settings.temperature, denoise=settings.denoise
    )
    return Plan(step, (*sigmas, 0.0), None, noisy_start=True)


def _pc(settings: Sampling, sigmas: tuple[float, ...]) -> Plan:
    predictors = {
        "reverse_diffusion": samplers.reverse_diffusion,
        "euler_maruyama": samplers.euler_maruyama,
    }
    sigmas = _geometric(settings, sigmas)
    step = functools.partial(
        samplers.predictor_corrector_step,
        predictor=predictors[settings.predictor],
        corrector_steps=settings.corrector_steps,
        snr=settings.snr,
        temperature=settings.temperature,
    )
    return Plan(step, sigmas, _denoising(settings, sigmas), noisy_start=True)


def _ode(settings: Sampling, sigmas: tuple[float, ...]) -> Plan:
    sigmas = _geometric(settings, sigmas)

    def step(key, score_fn, x, sigma, next_sigma):
        return samplers.probability_flow(
            score_fn, x, sigma, next_sigma, rtol=settings.rtol, atol=settings.atol
        )

    return Plan(step, sigmas, _denoising(settings, sigmas), noisy_start=True)


def _heun(settings: Sampling, sigmas: tuple[float, ...]) -> Plan:
    num_levels = settings.num_levels or len(sigmas)
    sigmas = tuple(karras_sigmas(sigmas[0], sigmas[-1], num_levels, rho=settings.rho).tolist())
    step = functools.partial(
        samplers.heun_step,
        churn=samplers.churn_of(settings.s_churn, num_levels),
        s_min=settings.s_min,
        s_max=settings.s_max,
        s_noise=settings.s_noise,
    )
    return Plan(step, (*sigmas, 0.0), None, noisy_start=True)


def interpolation(settings: Sampling, sigmas: tuple[float, ...]) -> Plan:
    """Return the plan of `ncsn_jax.posterior.interpolate`, whose states are rows of images."""
    levels = jnp.asarray(sigmas)

    def step(key, score_fn, row, sigma, next_sigma):
        step_size = level_step_size(settings.step_size, sigma, levels)

        def update(key, row):
            return interpolation_update(
                key, score_fn, row, sigma, step_size, temperature=settings.temperature
            )

        return repeat(key, update, row, settings.steps_per_scale)

    def finish(score_fn, row):
        return jax.vmap(lambda x: denoised(score_fn, x, sigmas[-1]))(row)

    return Plan(step, (*sigmas, 0.0), finish if settings.denoise else None, noisy_start=False)


def _geometric(settings: Sampling, sigmas: tuple[float, ...]) -> tuple[float, ...]:
    if settings.num_levels is None:
        return sigmas
    return tuple(geometric_sigmas(sigmas[0], sigmas[-1], settings.num_levels).tolist())


def _denoising(settings: Sampling, sigmas: tuple[float, ...]):
    if not settings.denoise:
        return None
    return lambda score_fn, x: denoised(score_fn, x, sigmas[-1])
