"""Independent streams of randomness, one for each purpose of a run."""

from typing import Literal, get_args

import jax

from ncsn_jax.typing import PRNGKey

Purpose = Literal[
    "initialization",
    "training",
    "evaluation",
    "sampling",
    "restoration",
    "likelihood",
    "levels",
    "conditions",
]
"""Purpose of draws; its place here decides their key, so a new purpose comes last."""


def stream(seed: int, purpose: Purpose) -> PRNGKey:
    """Return the key of a seed for one purpose.

    The key is always threefry, whatever the environment says: with the `rbg` generator, the draws of a
    vmapped function would depend on its batch.

    Args:
      seed: 0 … 2³² − 1.
      purpose: the purpose of the draws.
    """
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), get_args(Purpose).index(purpose))
