"""Independent streams of randomness, one for each purpose of a run."""

from typing import Literal

import jax

from ncsn_jax.typing import PRNGKey

Purpose = Literal[
    "initialization", "training", "evaluation", "sampling", "restoration", "likelihood", "levels"
]
STREAMS: dict[Purpose, int] = {
    "initialization": 0,
    "training": 1,
    "evaluation": 2,
    "sampling": 3,
    "restoration": 4,
    "likelihood": 5,
    "levels": 6,
}


def stream(seed: int, purpose: Purpose) -> PRNGKey:
    """Return the key of a seed for one purpose.

    The key is always threefry, whatever the environment says: with the `rbg` generator, the draws of a
    vmapped function would depend on its batch.

    Args:
      seed: 0 … 2³² − 1.
      purpose: the purpose of the draws.
    """
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), STREAMS[purpose])
