"""From one device to all: the only place where training knows that there are several.

Why `jax.pmap`: the step is data-parallel and nothing else. Every device holds the whole state and a slice
of the batch, and two collectives (the means of loss and gradient) are all that crosses devices; pmap says
exactly this at the outermost call, and leaves `loss_and_gradient` a plain function with one named axis.
`in_axes=None` broadcasts the parameters, so there is one logical copy to save and to restore, on any number
of devices. What a device does with the mean gradient, all do alike: `update` is under `jax.jit` alone.

Where it would change: a network too large for one device needs its parameters split too. Then the gradient
becomes `jax.jit(jax.shard_map(..., mesh=..., in_specs=(P(), P(), P(DEVICES), P()), out_specs=P()))` with
other specs for the parameters, and the functions of `ncsn_jax.training.step` stay as they are.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ncsn_jax.data import Batch
from ncsn_jax.training.state import TrainState
from ncsn_jax.training.step import DEVICES, ExampleLoss, loss_and_gradient, update
from ncsn_jax.typing import PRNGKey

Devices = Sequence[Any]
"""Some of `jax.devices()`."""


@dataclasses.dataclass(frozen=True)
class PmapStep:
    """`train_step(state, batch, key)` on all devices; the batch has an axis of devices. Donates the state.

    In two programs, as XLA can compile them, or load them, at the same time. The gradient is whole before
    the update begins in any case, which depends on its norm.
    """

    loss_and_gradient: Any
    update: Any

    def __call__(self, state: TrainState, batch: Batch, key: PRNGKey) -> tuple[TrainState, dict[str, Array]]:
        return self.update(state, *self.loss_and_gradient(state.params, state.step, batch, key))

    def lowered(self, state: TrainState, batch: Batch, key: Any) -> Iterator[jax.stages.Lowered]:
        """The programs for such arguments, arrays or their shapes.

        One after the other: the first can compile while the second is lowered. None where there are several
        processes, for which pmap lowers no shapes.
        """
        if jax.process_count() > 1:
            return
        first = self.loss_and_gradient.lower(state.params, state.step, batch, key)
        yield first
        # What it returns will lie where the state does.
        returned = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=state.step.sharding),
            first.out_info,
        )
        yield self.update.lower(state, *returned)


def pmap_step(
    *,
    loss: ExampleLoss,
    optimizer: optax.GradientTransformation,
    ema_rate: float,
    devices: Devices | None = None,
) -> PmapStep:
    """`train_step` of this loss, optimizer and moving average, on all devices."""
    return PmapStep(
        jax.pmap(
            functools.partial(loss_and_gradient, loss=loss),
            DEVICES,
            in_axes=(None, None, 0, None),
            out_axes=(None, None),
            devices=devices,
        ),
        jax.jit(
            functools.partial(update, optimizer=optimizer, ema_rate=ema_rate),
            donate_argnums=0,
            out_shardings=replicated(devices),
        ),
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
