"""The state that training carries from step to step, and the optimizer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax.core import eval_jaxpr
from jax.interpreters.partial_eval import dce_jaxpr

from ncsn_jax.typing import PRNGKey


class TrainState(struct.PyTreeNode):
    """The state of a run: the arrays of a checkpoint.

    Attributes:
      step: the number of steps made, an int32 scalar.
      params: the network's parameters.
      opt_state: the optimizer's state.
      ema_params: the exponential moving average of the parameters, for evaluation and sampling.
      num_skipped: the number of steps without an update, because loss or gradient wasn't finite; int32.
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
    """Return the state before the first step; the moving average starts as a copy of the parameters.

    Args:
      key: the key of the initial parameters.
      model: a batched score network, whose initial parameters depend only on the key.
      shape: the shape of one example: (height, width, channels), or (D,).
      optimizer: from `adam`, or any of optax.
    """
    _, draw = initial_params(key, model, shape)
    return first_state(draw(key), optimizer)


def first_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the state before the first step, with these parameters."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema_params=jax.tree.map(jnp.copy, params),
        num_skipped=jnp.zeros((), jnp.int32),
    )


def initial_params(
    key: Any, model: nn.Module, shape: tuple[int, ...]
) -> tuple[Any, Callable[[PRNGKey], Any]]:
    """Return the shapes of the parameters of `model.init`, and a function that draws them from a key.

    The function draws one parameter at a time, without computing the network. A single program for all of
    them would take several times as long to compile, and would round differently.

    Args:
      key: a key, or its shape.
      model: a batched score network.
      shape: the shape of one example.
    """

    def init(key, x, sigma):
        return model.init(key, x, sigma)["params"]

    x, sigma = jax.ShapeDtypeStruct((1, *shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    traced, params = jax.make_jaxpr(init, return_shape=True)(key, x, sigma)
    leaves, treedef = jax.tree.flatten(params)
    drawing, _ = dce_jaxpr(traced.jaxpr, [True] * len(leaves), instantiate=[True, False, False])
    return params, lambda key: treedef.unflatten(eval_jaxpr(drawing, traced.consts, key))


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
    """Return Adam (Kingma & Ba 2015), after an optional clipping of the gradient's global norm.

    Args:
      learning_rate: the largest learning rate.
      schedule: the schedule after the warm-up: `constant`, or `cosine` to 0 at `num_steps`.
      num_steps: the length of the run; used only by the cosine.
      warmup_steps: the length of the linear warm-up of the learning rate from 0; a shorter run ends in it.
      beta1: the decay of the first moment.
      beta2: the decay of the second moment.
      epsilon: the number added to the root of the second moment.
      gradient_clip: the largest global norm; None for no clipping.
    """
    after_warmup = {
        "constant": optax.constant_schedule(learning_rate),
        "cosine": optax.cosine_decay_schedule(learning_rate, max(1, num_steps - warmup_steps)),
    }[schedule]
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    rate = optax.join_schedules([warmup, after_warmup], [warmup_steps])
    clip = optax.identity() if gradient_clip is None else optax.clip_by_global_norm(gradient_clip)
    return optax.chain(clip, optax.adam(rate, beta1, beta2, epsilon))
