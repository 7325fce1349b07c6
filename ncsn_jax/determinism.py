"""jax's own settings, on which a run's bits depend, and which the environment may change."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

RECORDED = ("jax_default_matmul_precision",)
"""What a user may have reasons to choose: a checkpoint records it, and a run goes on with no other."""


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """Inside, random numbers and types are the same whatever the environment says.

    `JAX_ENABLE_X64`, `JAX_THREEFRY_PARTITIONABLE`, `JAX_DEFAULT_PRNG_IMPL`, `JAX_RANDOM_SEED_OFFSET` and
    `JAX_NUMPY_DTYPE_PROMOTION` would make other samples of a seed, and other steps of a run.
    """
    offset = jax.config.jax_random_seed_offset  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_random_seed_offset", 0)
    try:
        with (
            jax.enable_x64(False),
            jax.threefry_partitionable(True),
            jax.default_prng_impl("threefry2x32"),
            jax.numpy_dtype_promotion("standard"),
        ):
            yield
    finally:
        jax.config.update("jax_random_seed_offset", offset)


def recorded() -> dict[str, Any]:
    """The settings of jax that a checkpoint records, by name."""
    return {name: getattr(jax.config, name) for name in RECORDED}
