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


def muon(
    schedule: optax.Schedule,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Return Muon for kernels, and Adam for biases, scales and tables of embeddings.

    A kernel's momentum is made nearly orthogonal, as a matrix of all inputs by the outputs. It is scaled to a
    root mean square of 0.2, as in typical steps of Adam, so both share one learning rate. Both use
    Nesterov's momentum; Muon's decay is 0.95.

    Args:
      schedule: the learning rate by the number of steps made.
      beta1: the decay of Adam's first moment.
      beta2: the decay of Adam's second moment.
      epsilon: the number added to the denominators of both.
      weight_decay: the rate at which kernels decay, relative to the learning rate.

    Reference:
      Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; Liu et al. 2025
      (arXiv:2502.16982), equation 4, for the scale.
    """

    def matrices(params: Any) -> Any:
        def of(leaf: Any, is_kernel: bool) -> Any:
            axes = tuple(range(jnp.ndim(leaf)))
            return optax.contrib.MuonDimensionNumbers(axes[:-1], axes[-1]) if is_kernel else None

        return jax.tree.map(of, params, decays(params))

    return optax.contrib.muon(
        schedule,
        eps=epsilon,
        weight_decay=weight_decay,
        adam_b1=beta1,
        adam_b2=beta2,
        muon_weight_dimension_numbers=matrices,
        consistent_rms=0.2,
    )


def decays(params: Any) -> Any:
    """Return which parameters weight decay applies to: not to biases, scales and tables of embeddings.

    Parameters with fewer than two axes are biases and scales.
    """

    def decays(path: Any, leaf: Any) -> bool:
        return jnp.ndim(leaf) >= 2 and getattr(path[-1], "key", None) != "embedding"

    return jax.tree_util.tree_map_with_path(decays, params)
