"""The streams of randomness of a run, which never meet."""

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
    """The key of a seed for one purpose.

    It is threefry whatever the environment says: with the `rbg` generator, what a vmapped function draws
    depends on its batch.

    Args:
      seed: 0 … 2³² − 1.
      purpose: what is drawn from the key.
    """
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), STREAMS[purpose])
