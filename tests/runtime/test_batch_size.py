"""The batch size chosen from the device memory."""

import os

import jax
import jax.numpy as jnp
import pytest

from ncsn_jax import NCSN
from ncsn_jax.models import MLP
from ncsn_jax.runtime import batch_size
from ncsn_jax.runtime.batch_size import MOST, SHARE, chains_at_once

MODEL = NCSN(sigmas=(1.0, 0.1), num_filters=4)
SHAPE = (8, 8, 1)


def chosen(model, shape, memory, monkeypatch):
    """The chosen batch size of one device."""
    monkeypatch.setattr(batch_size, "memory", lambda device: memory)
    batch_size._from_memory.cache_clear()
    count = chains_at_once(None, model, shape)
    batch_size._from_memory.cache_clear()  # no other test has this memory
    return count / jax.local_device_count()


def temporary_memory(model, shape, chains):
    x, sigma = jnp.zeros((chains, *shape)), jnp.ones(chains)
    variables = jax.eval_shape(model.init, jax.random.key(0), x, sigma)
    return jax.jit(model.apply).lower(variables, x, sigma).compile().memory_analysis().temp_size_in_bytes


def test_a_configured_batch_size_is_used():
    assert chains_at_once(7, MODEL, SHAPE) == 7


def test_automatic_batch_size_fills_the_intended_share_of_memory(monkeypatch, optimized):
    memory = 8 * 2**20
    count = chosen(MODEL, SHAPE, memory, monkeypatch)
    assert 16 < count < MOST  # between the limits, which don't depend on memory
    share = temporary_memory(MODEL, SHAPE, int(count)) / memory
    assert 0.9 * SHARE < share < 1.1 * SHARE


@pytest.mark.parametrize(("memory", "expected"), [(1, 1), (2**50, MOST)])
def test_automatic_batch_size_has_a_lower_and_an_upper_limit(memory, expected, monkeypatch):
    assert chosen(MODEL, SHAPE, memory, monkeypatch) == expected


def test_automatic_batch_size_of_a_network_of_vectors_is_the_upper_limit(monkeypatch):
    assert chosen(MLP(), (2,), 2**34, monkeypatch) == MOST


@pytest.mark.parametrize(("limit", "expected"), [(f"{2**30}\n", 2**30), ("max\n", None), (None, None)])
def test_cpu_devices_share_the_memory_of_the_machine_or_its_container(limit, expected, monkeypatch, tmp_path):
    path = tmp_path / "memory.max"
    if limit is not None:
        path.write_text(limit)
    monkeypatch.setattr(batch_size, "CONTAINER_LIMIT", path)
    expected = expected or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert batch_size.memory(jax.local_devices()[0]) == expected // jax.local_device_count()
