import itertools

import jax
import numpy as np
import pytest

from ncsn_jax.data import evaluation_batches, training_batches

IMAGES = np.arange(50, dtype=np.uint8).reshape(50, 1, 1, 1)


def take(count, **options):
    """The global batches of the first steps, one row each, in the order of the examples' indices."""
    options = {"batch_size": 8, "seed": 0} | options
    rows = []
    for batch in itertools.islice(training_batches(IMAGES, **options), count):
        rows.append(batch["examples"].ravel()[np.argsort(batch["index"].ravel())])
    return np.stack(rows)


def test_an_epoch_shows_each_image_once_and_the_next_epoch_reorders_them():
    epochs = take(12).reshape(2, 48)
    assert all(len(set(epoch)) == 48 for epoch in epochs)
    assert not np.array_equal(*epochs)


def test_training_batch_order_depends_on_the_seed_alone():
    np.testing.assert_array_equal(take(7), take(7))
    assert not np.array_equal(take(7), take(7, seed=1))


def test_training_batches_from_a_later_step_continue_the_sequence():
    np.testing.assert_array_equal(take(5, first_step=9), take(14)[9:])


def test_training_batches_are_laid_out_for_the_devices():
    batch = next(training_batches(IMAGES, batch_size=8, seed=0))
    assert batch["examples"].shape == (4, 2, 1, 1, 1)
    assert sorted(batch["index"].ravel()) == list(range(8))
    assert batch["weight"].all()


@pytest.fixture
def processes(monkeypatch):
    """Pretends to be one of two processes."""

    def be(process):
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(jax, "process_index", lambda: process)

    return be


def test_two_processes_split_every_training_batch(processes):
    whole = take(14)
    parts = []
    for process in (0, 1):
        processes(process)
        parts.append(list(itertools.islice(training_batches(IMAGES, batch_size=8, seed=0), 14)))
    for step, row in enumerate(whole):
        for part in parts:
            batch = part[step]
            np.testing.assert_array_equal(row[batch["index"].ravel()], batch["examples"].ravel())
        indices = np.concatenate([part[step]["index"].ravel() for part in parts])
        assert sorted(indices) == list(range(8))


@pytest.mark.parametrize("count", [8, 19, 50, 1000])
def test_evaluation_batches_count_every_image_once(count):
    batches = list(evaluation_batches(IMAGES, count=count, batch_size=8))
    seen = np.concatenate([batch["examples"][batch["weight"]].ravel() for batch in batches])
    np.testing.assert_array_equal(seen, np.arange(min(count, 50)))
    indices = np.concatenate([batch["index"].ravel() for batch in batches])
    assert len(set(indices)) == len(indices)
