"""The training step and the held-out loss: pure functions of one device's share of a batch."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array
from jaxtyping import Float, Int, UInt8

from ncsn_jax.data.preprocessing import dequantize, random_flip
from ncsn_jax.losses import ncsn_loss
from ncsn_jax.models import as_score_fn
from ncsn_jax.training.state import TrainState
from ncsn_jax.typing import PRNGKey

DEVICES = "devices"
"""The axis over which gradients and losses are averaged."""

DeviceBatch = Mapping[str, Array]
"""One device's share of a `ncsn_jax.data.Batch`, without the axis of devices."""

ImageLoss = Callable[[PRNGKey, Any, UInt8[Array, "h w c"]], Float[Array, ""]]
"""The loss of one stored image under the given parameters."""


def image_loss(model: nn.Module, *, num_values: int, flip: bool, power: float) -> ImageLoss:
    """The noise-conditional loss of a stored image: flipped at random, dequantized, perturbed.

    Args:
      model: a score network with `sigmas`.
      num_values: how many values a pixel can have.
      flip: whether images are mirrored with probability ½.
      power: the exponent of the loss's weight.
    """
    sigmas = jnp.asarray(model.sigmas)

    def loss(key, params, image):
        flip_key, dequantize_key, loss_key = jax.random.split(key, 3)
        image = random_flip(flip_key, image) if flip else image
        x = dequantize(dequantize_key, image, num_values)
        score_fn = as_score_fn(model, {"params": params})
        return ncsn_loss(loss_key, score_fn, x, sigmas, power=power)

    return loss


def train_step(
    state: TrainState,
    batch: DeviceBatch,
    key: PRNGKey,
    *,
    loss: ImageLoss,
    optimizer: optax.GradientTransformation,
    ema_rate: float,
) -> tuple[TrainState, dict[str, Array]]:
    """One update from one device's share of the batch; run it under an axis named `DEVICES`.

    Args:
      state: the state, the same on every device.
      batch: this device's images, `(batch, height, width, channels)`, and their indices, `(batch,)`.
      key: the run's key. An example's key folds in the step and its index in the global batch: it depends
        neither on what ran before nor on how many devices share the batch.
      loss: the loss of one image.
      optimizer: the gradient transformation.
      ema_rate: r in ema ← r·ema + (1−r)·params.

    Returns:
      The next state, and the mean `loss` and the global `gradient_norm` of the step.
    """
    keys = example_keys(jax.random.fold_in(key, state.step), batch["index"])

    def mean_loss(params):
        return jnp.mean(jax.vmap(loss, (0, None, 0))(keys, params, batch["image"]))

    value, gradient = jax.value_and_grad(mean_loss)(state.params)
    value, gradient = jax.lax.pmean((value, gradient), DEVICES)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    state = TrainState(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        ema_params=optax.incremental_update(params, state.ema_params, 1.0 - ema_rate),
    )
    return state, {"loss": value, "gradient_norm": optax.tree.norm(gradient)}


def evaluation_step(
    params: Any, batch: DeviceBatch, key: PRNGKey, *, loss: ImageLoss
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The summed losses of all devices' images, and their number; run it under an axis named `DEVICES`."""
    keys = example_keys(key, batch["index"])
    losses = jax.vmap(loss, (0, None, 0))(keys, params, batch["image"])
    weight = batch["weight"].astype(losses.dtype)
    return jax.lax.psum((jnp.sum(weight * losses), jnp.sum(weight)), DEVICES)


def example_keys(key: PRNGKey, index: Int[Array, " batch"]) -> Array:
    """One key per example, folded from its index."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
