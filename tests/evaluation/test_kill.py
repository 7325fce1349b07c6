"""kill -9 in the middle of an evaluation, and several processes."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ncsn_jax.evaluation import results

ROOT = Path(__file__).parents[2]
OPTIONS = ["num_samples=40", "likelihood_examples=30", "loss_examples=30", "num_neighbours=2"]


def start(workdir, **environment):
    flags = [f"--config.evaluation.{option}" for option in OPTIONS]
    command = [sys.executable, str(ROOT / "main.py"), "--mode=evaluate", f"--workdir={workdir}", *flags]
    environment = os.environ | {"XLA_FLAGS": ""} | environment
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)


def finish(process):
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors


def files(workdir, pattern):
    return {path.name: path.read_bytes() for path in (workdir / "eval").glob(pattern)}


def made(workdir):
    """Existing parts and their modification times."""
    return {path: path.stat().st_mtime_ns for path in (workdir / "eval").rglob("*.npz")}


@pytest.fixture
def copies(trained, tmp_path):
    for name in ("whole", "killed"):
        shutil.copytree(trained[0], tmp_path / name)
    return tmp_path / "whole", tmp_path / "killed"


@pytest.mark.slow
def test_a_killed_evaluation_ends_equal_to_an_uninterrupted_one(copies):
    whole, killed = copies
    finish(start(whole))
    total = len(made(whole))
    known = {}
    for kill in range(1, 6):
        process = start(killed)
        while len(made(killed)) < kill * total // 6:
            assert process.poll() is None
            process.stderr.read1(64)  # waits until the progress bar moves
        process.kill()
        process.communicate()
        after = made(killed)
        assert known.items() <= after.items()  # nothing finished is computed again
        known = after
        assert len(known) < total
    finish(start(killed))
    assert known.items() <= made(killed).items()
    assert len(made(killed)) == total
    assert files(killed, "*.json") == files(whole, "*.json")
    assert len(files(whole, "*.json")) == 4


PROGRAM = """
import sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import main
sys.exit(main.main(["main.py", *sys.argv[3:]]))
"""


@pytest.mark.slow
def test_two_processes_measure_the_same_results_as_one(copies, unused_port):
    whole, shared = copies
    finish(start(whole))
    flags = ["--mode=evaluate", f"--workdir={shared}"]
    flags += [f"--config.evaluation.{option}" for option in OPTIONS]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, f"127.0.0.1:{unused_port}", str(i), *flags],
            env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=500) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    tables = [out.decode() for out, _ in outputs]
    assert "FD-40 (pixels)" in tables[0]
    assert "FD-40 (pixels)" not in tables[1]
    assert {path.name for path in made(shared)} == {path.name for path in made(whole)}
    for mine, theirs in zip(*(results.read_all(d / "eval") for d in (shared, whole)), strict=True):
        assert mine.results.keys() == theirs.results.keys()
        for name, result in mine.results.items():
            np.testing.assert_allclose(result.value, theirs.results[name].value, rtol=1e-3, atol=1e-5)


@pytest.fixture
def unused_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
