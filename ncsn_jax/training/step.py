"""The training step and the held-out loss: pure functions of one device's share of a batch."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array
from jax.flatten_util import ravel_pytree
from jaxtyping import Float, Int

from ncsn_jax.models import as_score_fn
from ncsn_jax.models.layers import FROZEN
from ncsn_jax.runtime.errors import ArgumentError
from ncsn_jax.training.objective import Objective
from ncsn_jax.training.power_averages import update_size
from ncsn_jax.training.state import TrainState
from ncsn_jax.typing import PRNGKey

DEVICES = "devices"
"""Name of the axis over which gradients and losses are averaged."""

DeviceBatch = Mapping[str, Any]
"""One device's share of a `ncsn_jax.data.Batch`, without the axis of devices."""

ExampleLoss = Callable[[PRNGKey, Any, Any], Float[Array, ""]]
"""The loss of one stored example under the given parameters."""

Map = Callable[[PRNGKey, Any], Any]
"""A random function of an example."""


def example_loss(
    model: nn.Module,
    objective: Objective,
    *,
    augment: Map | None = None,
    preprocess: Map | None = None,
    dropout: bool = False,
) -> ExampleLoss:
    """Return the loss function of stored examples: the objective of the preprocessed example.

    Args:
      model: a score network.
      objective: the loss of a score at a clean example.
      augment: a random function of a stored example, which comes first.
      preprocess: a random function from a stored example to a clean one.
      dropout: whether the network has dropout, if it has layers of it.
    """

    def loss(key, params, example):
        augment_key, preprocess_key, loss_key = jax.random.split(key, 3)
        example = example if augment is None else augment(augment_key, example)
        example = example if preprocess is None else preprocess(preprocess_key, example)
        condition, clean = condition_and_clean(example)
        dropout_key = jax.random.fold_in(key, 3) if dropout else None  # after the three above
        score_fn = as_score_fn(model, {"params": params}, condition, dropout_key=dropout_key)
        value = objective(loss_key, score_fn, clean)
        if jnp.shape(value) != ():
            raise ArgumentError(
                f"objective: found a loss of the shape {jnp.shape(value)}; accepted: a scalar"
            )
        return value

    return loss


def condition_and_clean(example: Any) -> tuple[Any, Any]:
    """Return the condition of an example, and its part that the objective receives.

    An example is an array x, or a dictionary with `x`; its `condition` is bound to the score. With further
    keys, the objective receives the whole dictionary, and x alone otherwise.
    """
    if not isinstance(example, Mapping):
        return None, example
    others = example.keys() - {"x", "condition"}
    return example.get("condition"), (dict(example) if others else example["x"])


def train_step(
    state: TrainState,
    batch: DeviceBatch,
    key: PRNGKey,
    *,
    loss: ExampleLoss,
    optimizer: optax.GradientTransformation,
    ema_rate: float,
    ema_warmup: bool = False,
    ema_lengths: Sequence[float] = (),
) -> tuple[TrainState, dict[str, Array]]:
    """Make one update from one device's share of the batch; run it under an axis named `DEVICES`.

    This is `loss_and_gradient`, then `update`; `ncsn_jax.training.parallel` compiles them separately.

    Args:
      state: the state, the same on every device.
      batch: this device's stored examples, `(batch, *event)`, and their indices, `(batch,)`.
      key: the run's key.
      loss: the loss of one example.
      optimizer: the gradient transformation.
      ema_rate: r in ema ← r·ema + (1−r)·params.
      ema_warmup: whether r is at most (1 + n)/(10 + n) in the n-th update.
      ema_lengths: the lengths σ_rel of two averages by power functions, instead of the exponential one
        (`ncsn_jax.training.power_averages`).

    Returns:
      The next state; the mean `loss` and the global `gradient_norm` of the step; and `num_skipped`, the
      number of steps skipped so far.
    """
    value, gradient = loss_and_gradient(state.params, state.step, batch, key, loss=loss)
    averaging: dict[str, Any] = {
        "ema_rate": ema_rate,
        "ema_warmup": ema_warmup,
        "ema_lengths": ema_lengths,
    }
    return update(state, value, gradient, optimizer=optimizer, **averaging)


def loss_and_gradient(
    params: Any, step: Int[Array, ""], batch: DeviceBatch, key: PRNGKey, *, loss: ExampleLoss
) -> tuple[Float[Array, ""], Any]:
    """Return the mean loss of all devices' examples and its gradient; run under an axis named `DEVICES`.

    Args:
      params: the network's parameters, the same on every device.
      step: the number of steps made.
      batch: this device's stored examples, `(batch, *event)`, and their indices, `(batch,)`.
      key: the run's key. An example's key folds in the step and the example's index in the global batch, so
        it depends neither on earlier steps nor on the number of devices.
      loss: the loss of one example.
    """
    keys = example_keys(jax.random.fold_in(key, step), batch["index"])

    def mean_loss(params):
        return jnp.mean(jax.vmap(loss, (0, None, 0))(keys, params, batch["examples"]))

    value_and_gradient = jax.value_and_grad(mean_loss)(params)
    if jax.lax.axis_size(DEVICES) == 1:  # on one device, XLA for CPUs would copy every gradient
        return value_and_gradient
    return jax.lax.pmean(value_and_gradient, DEVICES)


def update(
    state: TrainState,
    value: Float[Array, ""],
    gradient: Any,
    *,
    optimizer: optax.GradientTransformation,
    ema_rate: float,
    ema_warmup: bool = False,
    ema_lengths: Sequence[float] = (),
) -> tuple[TrainState, dict[str, Array]]:
    """Return the state after a step with this loss and gradient, and the values that `train_step` returns.

    If the loss or the gradient isn't finite, only the counts of steps and of skipped steps change.
    """
    norm = jnp.linalg.norm(ravel_pytree(gradient)[0])  # a norm per leaf would compile to two loops each
    is_finite = jnp.isfinite(value) & jnp.isfinite(norm)

    def updated(state):
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        updates = jax.tree_util.tree_map_with_path(
            lambda path, leaf: jnp.zeros_like(leaf) if is_frozen(path) else leaf, updates
        )
        params = optax.apply_updates(state.params, updates)
        count = state.step - state.num_skipped + 1
        state = state.replace(params=params, opt_state=opt_state)
        if ema_lengths:
            sizes = (update_size(count, length) for length in ema_lengths)
            averages = (state.ema_params, state.second_ema_params)
            first, second = map(functools.partial(moved_towards, params), averages, sizes)
            return state.replace(ema_params=first, second_ema_params=second)
        rate = jnp.minimum(ema_rate, (1 + count) / (10 + count)) if ema_warmup else ema_rate
        return state.replace(ema_params=moving_average(params, state.ema_params, rate))

    # XLA for CPUs updates in place in a branch; a `where` between old and new values would copy the state.
    state = jax.lax.cond(is_finite, updated, lambda state: state, state)
    num_skipped = state.num_skipped + ~is_finite
    state = state.replace(step=state.step + 1, num_skipped=num_skipped)
    return state, {"loss": value, "gradient_norm": norm, "num_skipped": num_skipped}


def moving_average(params: Any, ema_params: Any, rate: Any) -> Any:
    """Return r·ema + (1−r)·params with the rate r.

    Frozen parameters keep their values, as an average of equal numbers drifts by its rounding.
    """
    average = optax.incremental_update(params, ema_params, 1.0 - rate)
    return jax.tree_util.tree_map_with_path(
        lambda path, new, old: old if is_frozen(path) else new, average, ema_params
    )


def moved_towards(params: Any, average: Any, size: Float[Array, ""]) -> Any:
    """Return average + size·(params − average), whose weights sum to 1 for any small size."""
    return jax.tree.map(lambda new, old: old + size * (new - old), params, average)


def is_frozen(path: Any) -> bool:
    """Return whether the parameter at a path of the tree is never trained."""
    return str(getattr(path[-1], "key", "")).startswith(FROZEN) if path else False


def evaluation_step(
    params: Any, batch: DeviceBatch, key: PRNGKey, *, loss: ExampleLoss
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the sum of all devices' losses and their number; run it under an axis named `DEVICES`."""
    keys = example_keys(key, batch["index"])
    losses = jax.vmap(loss, (0, None, 0))(keys, params, batch["examples"])
    weight = batch["weight"].astype(losses.dtype)
    return jax.lax.psum((jnp.sum(weight * losses), jnp.sum(weight)), DEVICES)


def example_keys(key: PRNGKey, index: Int[Array, " batch"]) -> Array:
    """Return one key per example, folded from its index."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
