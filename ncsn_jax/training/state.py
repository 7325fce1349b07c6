"""The state that training carries from step to step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax.core import eval_jaxpr
from jax.interpreters.partial_eval import dce_jaxpr

from ncsn_jax.runtime.errors import ArgumentError
from ncsn_jax.typing import PRNGKey


class TrainState(struct.PyTreeNode):
    """The state of a run: the arrays of a checkpoint.

    Attributes:
      step: the number of steps made, an int32 scalar.
      params: the network's parameters.
      opt_state: the optimizer's state.
      ema_params: the moving average of the parameters, for evaluation and sampling.
      num_skipped: the number of steps without an update, because loss or gradient wasn't finite; int32.
      second_ema_params: a second moving average, if averages are power functions; otherwise None.
    """

    step: Any
    params: Any
    opt_state: optax.OptState
    ema_params: Any
    num_skipped: Any
    second_ema_params: Any = None


class Averages(struct.PyTreeNode):
    """The moving averages of a state by power functions: the arrays of a snapshot."""

    ema_params: Any
    second_ema_params: Any


AVERAGES = ("ema_params", "second_ema_params")
"""Names of the two averages, in the order of their lengths."""


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
      optimizer: the gradient transformation.
    """
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    _, draw = initial_params(key, model, x)
    return first_state(draw(key), optimizer)


def first_state(
    params: Any, optimizer: optax.GradientTransformation, *, has_two_averages: bool = False
) -> TrainState:
    """Return the state before the first step, with these parameters."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema_params=jax.tree.map(jnp.copy, params),
        num_skipped=jnp.zeros((), jnp.int32),
        second_ema_params=jax.tree.map(jnp.copy, params) if has_two_averages else None,
    )


def initial_params(
    key: Any, model: nn.Module, x: Any, condition: Any = None
) -> tuple[Any, Callable[[PRNGKey], Any]]:
    """Return the shapes of the parameters of `model.init`, and a function that draws them from a key.

    The function draws one parameter at a time, without computing the network. A single program for all of
    them would take several times as long to compile, and would round differently.

    Args:
      key: a key, or its shape.
      model: a batched score network.
      x: the shape and type of one example.
      condition: the shapes and types of its condition; None if the network takes none.
    """
    inputs = [x, jax.ShapeDtypeStruct((), jnp.float32), *([] if condition is None else [condition])]
    inputs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), inputs)

    def init(key, inputs):
        variables = model.init(key, *inputs)
        if others := set(variables) - {"params", "buffers"}:
            raise ValueError(f"it has the variables {sorted(others)}; accepted: parameters alone")
        return variables["params"]

    traced, params = jax.make_jaxpr(init, return_shape=True)(key, inputs)
    leaves, treedef = jax.tree.flatten(params)
    is_used = [True] + [False] * len(jax.tree.leaves(inputs))
    drawing, _ = dce_jaxpr(traced.jaxpr, [True] * len(leaves), instantiate=is_used)
    return params, lambda key: treedef.unflatten(eval_jaxpr(drawing, traced.consts, key))


def fitting_params(model: nn.Module, x: Any, condition: Any = None) -> tuple[Any, Callable[[PRNGKey], Any]]:
    """Return `initial_params` of a network, if it can take such examples.

    Raises:
      ArgumentError: if it can't.
    """
    key = jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32"))
    try:
        return initial_params(key, model, x, condition)
    except Exception as error:  # the network may be a user's
        raise ArgumentError(
            f"model={type(model).__name__} can't take examples of the shape {x.shape}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
