"""Training of a small score in one compiled loop, for the experiments and the tests of the objectives.

It is not `ncsn_jax.training.train`, because thousands of steps of microseconds need no files between them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array
from jaxtyping import Float

from ncsn_jax import as_score_fn
from ncsn_jax.typing import PRNGKey


def unconditional(model: nn.Module, params: Any, sigma: float = 1.0):
    """Return the network as a score s(x) of clean data; a constant σ sets the scale of its output."""
    score_fn = as_score_fn(model, params)
    return lambda x: score_fn(x, sigma)


def fit(
    key: PRNGKey,
    loss: Callable[[PRNGKey, Any], Float[Array, ""]],
    params: Any,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
    batch_size: int,
) -> tuple[Any, Float[Array, " num_steps"]]:
    """Minimise the mean of a single-example loss.

    Args:
      key: the key of the training.
      loss: the function `loss(key, params)` of one example, which it draws from its key.
      params: the initial parameters.
      optimizer: an optax optimizer.
      num_steps: the number of updates.
      batch_size: the number of examples per update.

    Returns:
      The last parameters, and the loss of every step.
    """

    def step(carry, step_key):
        params, opt_state = carry

        def mean_loss(params):
            return jnp.mean(jax.vmap(loss, (0, None))(jax.random.split(step_key, batch_size), params))

        value, gradient = jax.value_and_grad(mean_loss)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    @jax.jit
    def train(params, keys):
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)

    (params, _), losses = train(params, jax.random.split(key, num_steps))
    return params, losses
