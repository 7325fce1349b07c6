"""Batches of stored examples for every step of a run, by Grain.

The batch of a step is a pure function of (examples, seed, step): resuming needs no iterator state, and any
number of processes sees the same examples at the same step.
"""

from collections.abc import Iterator
from typing import TypedDict

import grain
import jax
import numpy as np
from jaxtyping import Bool, Int, Shaped

from ncsn_jax.data.datasets import Source


class Batch(TypedDict):
    """One process's share of a global batch, laid out for its devices.

    Attributes:
      x: the stored examples, `(devices, batch / devices, *event)`.
      index: each example's place in the global batch (in the whole split, for evaluation): what its key is
        folded from.
      weight: whether the example counts; false only for the padding of an evaluation's last batch.
    """

    x: Shaped[np.ndarray, "devices batch *event"]
    index: Int[np.ndarray, "devices batch"]
    weight: Bool[np.ndarray, "devices batch"]


def training_batches(examples: Source, *, batch_size: int, seed: int, first_step: int = 0) -> Iterator[Batch]:
    """Shuffled batches without end; every epoch has its own order and leaves out the last partial batch.

    Args:
      examples: an array, or what reads them by index; at least `batch_size`.
      batch_size: examples in the global batch, divisible by the number of devices.
      seed: decides, with the epoch, the order.
      first_step: the step of the first batch.
    """
    whole = len(examples) // batch_size * batch_size
    source = grain.MapDataset.source(examples)  # pyright: ignore[reportArgumentType]
    dataset = source.seed(seed).shuffle()[:whole]
    # Arrays are faster read than handed between threads; a few threads decode what lies on disk.
    threads = 0 if isinstance(examples, np.ndarray) else 8
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    batches = iter(_share(dataset, batch_size).repeat().to_iter_dataset(options))
    batches.set_state({"next_index": first_step})
    index = np.arange(batch_size)[jax.process_index() :: jax.process_count()]
    for x in batches:
        yield _layout(Batch(x=x, index=index, weight=np.ones_like(index, bool)))


def evaluation_batches(examples: Source, *, count: int, batch_size: int) -> Iterator[Batch]:
    """The first examples, each once and in order; the last batch is padded by examples of weight 0.

    Args:
      examples: an array, or what reads them by index.
      count: how many of them; at most all.
      batch_size: examples in the global batch, divisible by the number of devices.
    """
    count = min(count, len(examples))
    padded = -(-count // batch_size) * batch_size
    dataset = grain.MapDataset.range(padded)
    for index in _share(dataset, batch_size):
        x = np.stack([examples[i % count] for i in index])
        yield _layout(Batch(x=x, index=index, weight=index < count))


def _share(dataset: grain.MapDataset, batch_size: int) -> grain.MapDataset:
    """This process's part of every global batch: each one's elements p, p + P, p + 2P, …"""
    processes = jax.process_count()
    return dataset[jax.process_index() :: processes].batch(batch_size // processes, drop_remainder=True)


def _layout(batch: Batch) -> Batch:
    devices = jax.local_device_count()
    return jax.tree.map(lambda a: a.reshape(devices, -1, *a.shape[1:]), batch)
