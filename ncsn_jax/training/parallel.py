"""Data-parallel training: the only module of training that knows about several devices.

Why `jax.pmap`: the step is purely data-parallel. Every device holds the whole state and a slice of the
batch, and only two collectives (the means of loss and gradient) cross devices. pmap says exactly this at the
outermost call, and `loss_and_gradient` stays a plain function with one named axis. `in_axes=None` broadcasts
the parameters, so there is one logical copy to save and to restore, on any number of devices. All devices
apply the mean gradient in the same way, so `update` needs only `jax.jit`.

A network too large for one device needs its parameters split too. Then the gradient becomes
`jax.jit(jax.shard_map(..., mesh=..., in_specs=(P(), P(), P(DEVICES), P()), out_specs=P()))` with other specs
for the parameters, and the functions of `ncsn_jax.training.step` stay unchanged.
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

from ncsn_jax.training.state import TrainState
from ncsn_jax.training.step import DEVICES, ExampleLoss, loss_and_gradient, update
from ncsn_jax.typing import PRNGKey

Devices = Sequence[Any]
"""A selection of `jax.devices()`."""


@dataclasses.dataclass(frozen=True)
class PmapStep:
    """`train_step(state, batch, key)` on all devices; the batch has an axis of devices. Donates the state.

    It is two programs, because XLA can compile or load them at the same time. Nothing is lost by this split:
    the update depends on the gradient's norm, and so can't begin before the gradient is complete.
    """

    loss_and_gradient: Any
    update: Any

    def __call__(self, state: TrainState, batch: Any, key: PRNGKey) -> tuple[TrainState, dict[str, Array]]:
        return self.update(state, *self.loss_and_gradient(state.params, state.step, batch, key))

    def lowered(self, state: TrainState, batch: Any, key: Any) -> Iterator[jax.stages.Lowered]:
        """Yield the lowered programs for these arguments, which are arrays or their shapes.

        They come one at a time, so the first can compile while the second is lowered. With several
        processes, nothing is yielded, because pmap can't lower shapes there.
        """
        if jax.process_count() > 1:
            return
        first = self.loss_and_gradient.lower(state.params, state.step, batch, key)
        yield first
        # The real results will have the state's sharding.
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
    ema_warmup: bool = False,
    ema_lengths: Sequence[float] = (),
    devices: Devices | None = None,
) -> PmapStep:
    """Return `train_step` on all devices, with this loss, optimizer and moving average."""
    return PmapStep(
        jax.pmap(
            functools.partial(loss_and_gradient, loss=loss),
            DEVICES,
            in_axes=(None, None, 0, None),
            out_axes=(None, None),
            devices=devices,
        ),
        jax.jit(
            functools.partial(
                update,
                optimizer=optimizer,
                ema_rate=ema_rate,
                ema_warmup=ema_warmup,
                ema_lengths=ema_lengths,
            ),
            donate_argnums=0,
            out_shardings=replicated(devices),
        ),
    )


def pmap_evaluation(step, devices: Devices | None = None):
    """Return `evaluation_step(params, batch, key)` on all devices; the batch has an axis of devices."""
    return jax.pmap(step, DEVICES, in_axes=(None, 0, None), out_axes=(None, None), devices=devices)


def replicated(devices: Devices | None = None) -> NamedSharding:
    """Return the sharding of pmap's broadcast results: one copy on each device of this process.

    A first state without this sharding would make the step compile twice.
    """
    return NamedSharding(Mesh(np.asarray(devices or jax.local_devices()), (DEVICES,)), PartitionSpec())


def replicate(tree: Any, devices: Devices | None = None) -> Any:
    """Copy the tree to each device of this process."""
    return jax.device_put(tree, replicated(devices))


def as_global(tree: Any) -> Any:
    """Return a replicated tree as global arrays, which all processes save and restore together."""
    mesh = Mesh(np.asarray(jax.devices()), (DEVICES,))
    return multihost_utils.host_local_array_to_global_array(tree, mesh, PartitionSpec())


def as_local(tree: Any) -> Any:
    """Return a tree of global arrays as arrays of this process: the inverse of `as_global`."""
    mesh = Mesh(np.asarray(jax.devices()), (DEVICES,))
    return multihost_utils.global_array_to_host_local_array(tree, mesh, PartitionSpec())
