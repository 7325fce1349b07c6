"""XLA accepts the options, and they change no result."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import NCSN
from ncsn_jax.runtime import compiling
from ncsn_jax.training.state import initial_params


@pytest.mark.parametrize(("given", "expected"), [(None, ""), ("--xla_a=1 --xla_b=2", " --xla_a=1 --xla_b=2")])
def test_xla_flags_of_the_user_come_last_and_win(given, expected, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if given:
        monkeypatch.setenv("XLA_FLAGS", given)
    compiling.set_xla_flags()
    assert os.environ["XLA_FLAGS"] == compiling.XLA_FLAGS + expected


def test_xla_accepts_the_default_flags():
    """XLA ends the process at an unknown flag."""
    program = "import jax; jax.devices()"
    subprocess.run(
        [sys.executable, "-c", program], check=True, env=os.environ | {"XLA_FLAGS": compiling.XLA_FLAGS}
    )


@pytest.mark.slow
def test_inference_options_change_scores_by_rounding_alone():
    network = NCSN(sigmas=(1.0, 0.1), num_filters=4)
    x, sigma = jax.random.uniform(jax.random.key(0), (2, 8, 8, 1)), jnp.array([1.0, 0.1])
    _, draw = initial_params(jax.random.key(1), network, x[0])
    params = {"params": draw(jax.random.key(1))}
    scores = [
        jax.jit(network.apply, compiler_options=options)(params, x, sigma)
        for options in ({}, compiling.inference_options())
    ]
    np.testing.assert_allclose(*scores, rtol=1e-4, atol=1e-5 * float(jnp.abs(scores[0]).max()))


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_freed_memory_returns_to_the_system_after_a_compilation(monkeypatch):
    monkeypatch.setattr(compiling, "LONG", 0.0)
    compiling.give_memory_back_after_compilations()
    pieces = [np.ones(12_000) for _ in range(2000)]  # small enough for the heap, 180 MiB in all
    del pieces[:-1]  # the last one holds the heap's end
    before = resident_size()
    try:
        jax.jit(lambda x: x + jnp.pi)(jnp.ones(7))
    finally:
        jax.monitoring.unregister_event_duration_listener(compiling._give_memory_back)
    assert before - resident_size() > 100 * 2**20  # XLA holds some of it


def resident_size() -> int:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return 1024 * int(found[1])
