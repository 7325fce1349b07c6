"""From one device to all: the only place where training knows that there are several.

Why `jax.pmap`: the step is data-parallel and nothing else. Every device holds the whole state and a slice
of the batch, and two collectives (the means of loss and gradient) are all that crosses devices; pmap says
exactly this at the outermost call, and leaves `train_step` a plain function with one named axis.
`in_axes=None` broadcasts the state, so there is one logical copy to save and to restore, on any number of
devices.

Where it would change: a network too large for one device needs its parameters split too. Then these
functions become `jax.jit(jax.shard_map(step, mesh=..., in_specs=(P(), P(DEVICES), P()), out_specs=P()))`
with other specs for the state, and `train_step` stays as it is.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ncsn_jax.training.step import DEVICES

Devices = Sequence[Any]
"""Some of `jax.devices()`."""


def pmap_step(step, devices: Devices | None = None):
    """`train_step(state, batch, key)` on all devices; the batch has an axis of devices. Donates the state."""
    return jax.pmap(
        step,
        DEVICES,
        in_axes=(None, 0, None),
        out_axes=(None, None),
        donate_argnums=0,
        devices=devices,
    )


def pmap_evaluation(step, devices: Devices | None = None):
    """`evaluation_step(params, batch, key)` on all devices; the batch has a leading axis of devices."""
    return jax.pmap(step, DEVICES, in_axes=(None, 0, None), out_axes=(None, None), devices=devices)


def replicated(devices: Devices | None = None) -> NamedSharding:
    """The sharding of pmap's broadcast results: one copy on each device of this process.

    A first state without it would make the step compile twice.
    """
    return NamedSharding(Mesh(np.asarray(devices or jax.local_devices()), (DEVICES,)), PartitionSpec())


def replicate(tree: Any, devices: Devices | None = None) -> Any:
    """The tree with one copy on each device of this process."""
    return jax.device_put(tree, replicated(devices))


def as_global(tree: Any) -> Any:
    """A replicated tree as one of the devices of all processes, which they save and restore together."""
    mesh = Mesh(np.asarray(jax.devices()), (DEVICES,))
    return multihost_utils.host_local_array_to_global_array(tree, mesh, PartitionSpec())


def as_local(tree: Any) -> Any:
    """A tree of the devices of all processes as one of this process's: `as_global` undone."""
    mesh = Mesh(np.asarray(jax.devices()), (DEVICES,))
    return multihost_utils.global_array_to_host_local_array(tree, mesh, PartitionSpec())
