"""Settings of jax that affect the bits of a run, and that the environment can change."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

RECORDED = ("jax_default_matmul_precision",)
"""Settings that users may choose: checkpoints record them, and a run resumes only with the same values."""


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """Fix the random numbers and types inside this context, whatever the environment says.

    Otherwise `JAX_ENABLE_X64`, `JAX_THREEFRY_PARTITIONABLE`, `JAX_DEFAULT_PRNG_IMPL`,
    `JAX_RANDOM_SEED_OFFSET`, `JAX_NUMPY_DTYPE_PROMOTION` and `JAX_DISABLE_JIT` would change the samples of a
    seed and the steps of a run.
    """
    offset = jax.config.jax_random_seed_offset  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_random_seed_offset", 0)
    try:
        with (
            jax.enable_x64(False),
            jax.threefry_partitionable(True),
            jax.default_prng_impl("threefry2x32"),
            jax.numpy_dtype_promotion("standard"),
            jax.disable_jit(False),
        ):
            yield
    finally:
        jax.config.update("jax_random_seed_offset", offset)


def recorded() -> dict[str, Any]:
    """Return the settings of jax that a checkpoint records, by name."""
    return {name: getattr(jax.config, name) for name in RECORDED}
