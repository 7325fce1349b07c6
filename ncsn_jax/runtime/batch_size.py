"""The number of chains to run at once, if the settings leave it open."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import psutil
from flax import linen as nn

MOST = 256
"""Largest number of chains per device. No network was faster with more on a CPU (docs/performance.md)."""
SHARE = 0.25
"""Share of memory that the scores of all chains may take; a likelihood, which differentiates, takes more."""
FEW = 8
"""Number of chains in the probe that measures memory per chain."""

CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""A container's file with its memory limit: a number of bytes, or "max"."""


def chains_at_once(batch_size: int | None, model: nn.Module, shape: tuple[int, ...]) -> int:
    """Return the batch size; if None, as many chains as memory allows, up to 256 per local device.

    The number is always the same on one machine.

    Args:
      batch_size: the number of chains, if it is set.
      model: the network.
      shape: the shape of one sample: (height, width, channels), or (D,).
    """
    return batch_size or _from_memory(model, shape)


@functools.cache
def _from_memory(model: nn.Module, shape: tuple[int, ...]) -> int:
    devices = jax.local_devices()
    x, sigma = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((FEW, *shape), (FEW,)))
    variables = jax.eval_shape(model.init, jax.random.key(0), x, sigma)
    analysis = jax.jit(model.apply).lower(variables, x, sigma).compile().memory_analysis()
    each = analysis.temp_size_in_bytes / FEW if analysis else 0.0
    fitting = SHARE * memory(devices[0]) // max(each, 1.0)
    return len(devices) * int(min(max(fitting, 1), MOST))


def memory(device: Any) -> int:
    """Return a device's memory in bytes; for a CPU, its share of the machine's or container's memory."""
    if device.platform != "cpu":
        return device.memory_stats()["bytes_limit"]
    limits = [psutil.virtual_memory().total]
    if CONTAINER_LIMIT.exists() and (limit := CONTAINER_LIMIT.read_text().strip()).isdecimal():
        limits.append(int(limit))
    return min(limits) // jax.local_device_count()
