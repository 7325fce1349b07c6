"""The probability flow by an adaptive solver (Song et al. 2021), for a single chain."""

from collections.abc import Callable
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ncsn_jax.dtypes import wide, widened
from ncsn_jax.samplers.process import Event, flow, require_any_sigma
from ncsn_jax.typing import Scalar, ScoreFn


class SolverOptions(TypedDict, total=False):
    """Settings of the solver, all optional.

    Attributes:
      rtol: the relative tolerance of a step, 1e-5 by default; lower values gain little in float32.
      atol: the absolute tolerance, in the units of the state, 1e-5 by default.
      solver: a diffrax solver, `diffrax.Tsit5()` by default.
      stepsize_controller: a diffrax controller, instead of the adaptive one with these tolerances;
        `diffrax.StepTo(ts)` takes fixed steps, with ts in log σ.
      max_steps: the number of steps after which the solver gives up, 4096 by default.
    """

    rtol: float
    atol: float
    solver: Any
    stepsize_controller: Any
    max_steps: int


def probability_flow(
    score_fn: ScoreFn,
    x: Event,
    start: Scalar,
    stop: Scalar,
    **options: Unpack[SolverOptions],
) -> Event:
    """Follow the probability flow dx/dσ = −σ s(x, σ) from one noise level to another, with diffrax.

    Downwards it decodes: x ~ p_start becomes a sample of p_stop. Upwards it encodes. Each direction undoes
    the other, up to the solver's tolerance. The solver's time is log σ.

    Args:
      score_fn: s(x, σ), for any σ.
      x: the state at `start`, shape `(*event,)`.
      start: the first σ, positive.
      stop: the last σ, positive.
      options: the solver's settings, `SolverOptions`.

    Returns:
      The state at `stop`, shape `(*event,)`; NaN if the solver gave up or a σ isn't positive.

    Raises:
      ValueError: if the score comes from a network of discrete levels.

    Reference:
      Song et al. 2021 (arXiv:2011.13456), section 4.3 and appendix D.4.
    """
    require_any_sigma(score_fn)
    return follow(lambda x, sigma: flow(score_fn, x, sigma), x, start, stop, **options)


def follow(
    velocity: Callable[[Any, Float[Array, ""]], Any],
    y: Any,
    start: Scalar,
    stop: Scalar,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    solver: Any = None,
    stepsize_controller: Any = None,
    max_steps: int = 4096,
) -> Any:
    """Solve dy/dσ = f(y, σ) from one noise level to another, with diffrax in the time log σ.

    Args:
      velocity: f, from y and σ to a pytree like y.
      y: the state at `start`, an array or a pytree of arrays.
      start: the first σ, positive.
      stop: the last σ, positive.
      rtol: as in `SolverOptions`, like all that follow.

    Returns:
      y at `stop`, in its types; NaN if the solver gave up or a σ isn't positive. It is computed in at least
      float32.
    """
    import diffrax  # imported here because it takes longer than the whole package

    def in_log_sigma(log_sigma, y, args):
        sigma = jnp.exp(log_sigma)
        return jax.tree.map(lambda rate: sigma.astype(rate.dtype) * rate, velocity(y, sigma))

    narrow = jax.tree.map(jnp.result_type, y)
    y = jax.tree.map(widened, y)
    start, stop = (jnp.asarray(sigma, wide(*jax.tree.leaves(y))) for sigma in (start, stop))
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(in_log_sigma),
        solver or diffrax.Tsit5(),
        t0=jnp.log(start),
        t1=jnp.log(stop),
        dt0=None,
        y0=y,
        stepsize_controller=stepsize_controller or diffrax.PIDController(rtol=rtol, atol=atol),
        max_steps=max_steps,
        throw=False,  # an exception would stop all chains of a batch
    )
    assert solution.ys is not None  # by default, the last state is saved
    # Given a NaN, diffrax takes no step and reports success.
    solved = (solution.result == diffrax.RESULTS.successful) & (start > 0) & (stop > 0)
    return jax.tree.map(
        lambda saved, own: jnp.where(solved, saved[0], jnp.nan).astype(own), solution.ys, narrow
    )
