"""Optimizers of training: Adam with a schedule, a clipped gradient, and optionally weight decay."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

Schedule = Literal["constant", "cosine"]


def learning_rate_schedule(
    learning_rate: float, schedule: Schedule, num_steps: int, warmup_steps: int
) -> optax.Schedule:
    """Return the learning rate by the number of steps made.

    Args:
      learning_rate: the largest learning rate.
      schedule: the schedule after the warm-up: `constant`, or `cosine` to 0 at `num_steps`.
      num_steps: the length of the run; used only by the cosine.
      warmup_steps: the length of the linear warm-up of the learning rate from 0; a shorter run ends in it.
    """
    after_warmup = {
        "constant": optax.constant_schedule(learning_rate),
        "cosine": optax.cosine_decay_schedule(learning_rate, max(1, num_steps - warmup_steps)),
    }[schedule]
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, after_warmup], [warmup_steps])


def clipped(
    optimizer: optax.GradientTransformation, gradient_clip: float | None
) -> optax.GradientTransformation:
    """Return the optimizer after a clipping of the gradient's global norm; None doesn't clip."""
    clip = optax.identity() if gradient_clip is None else optax.clip_by_global_norm(gradient_clip)
    return optax.chain(clip, optimizer)


def adam(
    *,
    learning_rate: float,
    schedule: Schedule,
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
      schedule: an argument of `learning_rate_schedule`, like the next two.
      num_steps: the length of the run.
      warmup_steps: the length of the warm-up.
      beta1: the decay of the first moment.
      beta2: the decay of the second moment.
      epsilon: the number added to the root of the second moment.
      gradient_clip: the largest global norm; None for no clipping.
    """
    rate = learning_rate_schedule(learning_rate, schedule, num_steps, warmup_steps)
    return clipped(optax.adam(rate, beta1, beta2, epsilon), gradient_clip)


def decays(params: Any) -> Any:
    """Return which parameters weight decay applies to: not to biases, scales and tables of embeddings.

    Parameters with fewer than two axes are biases and scales.
    """

    def decays(path: Any, leaf: Any) -> bool:
        return jnp.ndim(leaf) >= 2 and getattr(path[-1], "key", None) != "embedding"

    return jax.tree_util.tree_map_with_path(decays, params)
