"""What training carries from step to step, and the optimizer."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from ncsn_jax.typing import PRNGKey


class TrainState(struct.PyTreeNode):
    """The state of a run: all that a checkpoint holds.

    Attributes:
      step: how many steps were made, an int32 scalar.
      params: the network's parameters.
      opt_state: the optimizer's state.
      ema_params: the exponential moving average of the parameters, what is evaluated and sampled.
      num_skipped: how many of the steps made no update, for their loss or gradient wasn't finite; int32.
    """

    step: Any
    params: Any
    opt_state: optax.OptState
    ema_params: Any
    num_skipped: Any


def create_state(
    key: PRNGKey,
    model: nn.Module,
    shape: tuple[int, ...],
    optimizer: optax.GradientTransformation,
) -> TrainState:
    """The state before the first step; the moving average starts as a copy of the parameters.

    Args:
      key: draws the initial parameters.
      model: a batched score network, whose initial parameters depend on its key alone.
      shape: of one example: (height, width, channels), or (D,).
      optimizer: from `adam`, or any of optax.
    """
    return _state(initial_params(key, model, shape), optimizer)


def state_shapes(
    model: nn.Module, shape: tuple[int, ...], optimizer: optax.GradientTransformation
) -> TrainState:
    """The shapes and dtypes of what `create_state` makes; computes nothing."""
    key = jax.eval_shape(jax.random.key, 0)
    params = jax.eval_shape(model.init, key, *_inputs(shape))["params"]
    return jax.eval_shape(functools.partial(_state, optimizer=optimizer), params)


def _state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema_params=jax.tree.map(jnp.copy, params),
        num_skipped=jnp.zeros((), jnp.int32),
    )


def initial_params(key: PRNGKey, model: nn.Module, shape: tuple[int, ...]) -> Any:
    """The parameters of `model.init`, drawn one by one; the network itself isn't computed.

    One program that draws them all takes several times as long to compile, and rounds differently.
    """
    drawn = []

    def init(x, sigma):
        with jax.ensure_compile_time_eval():  # what doesn't depend on x and sigma: the parameters
            drawn.append(model.init(key, x, sigma)["params"])

    jax.eval_shape(init, *_inputs(shape))
    return drawn[0]


def _inputs(shape: tuple[int, ...]) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """One example and its σ."""
    return jax.ShapeDtypeStruct((1, *shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)


def adam(
    *,
    learning_rate: float,
    schedule: str,
    num_steps: int,
    warmup_steps: int,
    beta1: float,
    beta2: float,
    epsilon: float,
    gradient_clip: float | None,
) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015), behind an optional clipping of the gradient's global norm.

    Args:
      learning_rate: the largest learning rate.
      schedule: after the warm-up, `constant`, or `cosine` to 0 at `num_steps`.
      num_steps: the length of the run; only the cosine reads it.
      warmup_steps: steps in which the learning rate grows linearly from 0; a shorter run ends within them.
      beta1: the decay of the first moment.
      beta2: the decay of the second moment.
      epsilon: what is added to the root of the second moment.
      gradient_clip: the largest global norm; None clips nothing.
    """
    after_warmup = {
        "constant": optax.constant_schedule(learning_rate),
        "cosine": optax.cosine_decay_schedule(learning_rate, max(1, num_steps - warmup_steps)),
    }[schedule]
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    rate = optax.join_schedules([warmup, after_warmup], [warmup_steps])
    clip = optax.identity() if gradient_clip is None else optax.clip_by_global_norm(gradient_clip)
    return optax.chain(clip, optax.adam(rate, beta1, beta2, epsilon))
