"""Batches of stored examples for the steps of a run, by Grain.

The batch of a step is a pure function of (examples, seed, step): resuming needs no iterator state, and the
examples of a step are the same for any number of processes.
"""

from collections.abc import Iterable, Iterator
from typing import Any, TypedDict

import grain
import jax
import numpy as np
from jaxtyping import Bool, Int

from ncsn_jax.data.conditions import ConditionalExamples
from ncsn_jax.data.datasets import Source
from ncsn_jax.runtime.errors import ArgumentError


class Batch(TypedDict):
    """One process's share of a global batch, laid out for its devices.

    Attributes:
      examples: the stored examples, with the axes `(devices, batch / devices)` in front of each array.
      index: each example's place in the global batch (in the whole split, for evaluation), which is folded
        into its key.
      weight: whether the example counts; false only for padding in the last batch of an evaluation.
    """

    examples: Any
    index: Int[np.ndarray, "devices batch"]
    weight: Bool[np.ndarray, "devices batch"]


def training_batches(examples: Source, *, batch_size: int, seed: int, first_step: int = 0) -> Iterator[Batch]:
    """Yield shuffled batches without end; every epoch has its own order and drops the last partial batch.

    Args:
      examples: an array, or a source that reads by index; at least `batch_size` examples.
      batch_size: examples in the global batch, divisible by the number of devices.
      seed: the seed, which decides the order together with the epoch.
      first_step: the step of the first batch.
    """
    whole = len(examples) // batch_size * batch_size
    source = grain.MapDataset.source(examples)  # pyright: ignore[reportArgumentType]
    dataset = source.seed(seed).shuffle()[:whole]
    # Arrays are faster to read than to pass between threads; a few threads decode images from the disk.
    stored = examples.x if isinstance(examples, ConditionalExamples) else examples
    threads = 0 if isinstance(stored, np.ndarray) else 8
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    batches = iter(_share(dataset, batch_size).repeat().to_iter_dataset(options))
    batches.set_state({"next_index": first_step})
    return given_batches(batches, batch_size=batch_size)


def given_batches(batches: Iterable[Any], *, batch_size: int) -> Iterator[Batch]:
    """Yield batches of this process's own examples, in the order of the iterable.

    Args:
      batches: an array, or a dictionary of arrays, for each step; the first axis has this process's examples.
      batch_size: examples in the global batch, divisible by the number of devices.

    Raises:
      ArgumentError: if a batch has another number of examples, or the batches end.
    """
    index = np.arange(batch_size)[jax.process_index() :: jax.process_count()]
    for examples in batches:
        for leaf in jax.tree.leaves(examples):
            if len(leaf) != len(index):
                raise ArgumentError(
                    f"batches: found {len(leaf)} examples in a batch; accepted: {len(index)} a process, with "
                    f"batch_size={batch_size}"
                )
        yield _layout(Batch(examples=examples, index=index, weight=np.ones_like(index, bool)))
    raise ArgumentError("batches: the iterator has ended; accepted: one that reaches the last step")


def evaluation_batches(examples: Source, *, count: int, batch_size: int) -> Iterator[Batch]:
    """Yield the first examples once, in order; the last batch is padded with examples of weight 0.

    Args:
      examples: an array, or a source that reads by index.
      count: the number of examples; at most all are used.
      batch_size: examples in the global batch, divisible by the number of devices.
    """
    count = min(count, len(examples))
    padded = -(-count // batch_size) * batch_size
    dataset = grain.MapDataset.range(padded)
    for index in _share(dataset, batch_size):
        x = jax.tree.map(lambda *leaves: np.stack(leaves), *[examples[i % count] for i in index])
        yield _layout(Batch(examples=x, index=index, weight=index < count))


def _share(dataset: grain.MapDataset, batch_size: int) -> grain.MapDataset:
    """Return this process's part of every global batch: elements p, p + P, p + 2P, … of P processes."""
    processes = jax.process_count()
    return dataset[jax.process_index() :: processes].batch(batch_size // processes, drop_remainder=True)


def _layout(batch: Batch) -> Batch:
    devices = jax.local_device_count()
    return jax.tree.map(lambda a: a.reshape(devices, -1, *a.shape[1:]), batch)
