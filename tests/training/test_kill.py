"""kill -9 in the middle of a run, and the same command again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from ncsn_jax import training

ROOT = Path(__file__).parents[2]


def start(workdir, data_dir):
    options = {
        "data.data_dir": data_dir,
        "model.num_filters": 2,
        "training.num_steps": 60,
        "training.batch_size": 4,
        "training.schedule": "constant",
        "training.log_every": 5,
        "training.checkpoint_every": 10,
        "training.eval_every": 20,
        "training.preview_every": 60,
        "training.preview_samples": 1,
        "sampling.steps_per_scale": 1,
        "sampling.num_samples": 2,
    }
    flags = [f"--config.{name}={value}" for name, value in options.items()]
    command = [sys.executable, str(ROOT / "main.py"), f"--workdir={workdir}", *flags]
    environment = os.environ | {"XLA_FLAGS": ""}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)


def finish(process):
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors


def measured(workdir):
    """The losses of the metrics file, by step and name."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    names = ("loss", "test_loss", "gradient_norm")
    return [(line["step"], name, line[name]) for line in lines for name in names if name in line]


@pytest.mark.slow
@pytest.mark.parametrize("step", [15, 30])
def test_a_killed_run_ends_as_an_uninterrupted_one(step, data_dir, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(whole, data_dir))

    process = start(killed, data_dir)
    metrics = killed / "metrics.jsonl"
    deadline = time.monotonic() + 500
    while f'"step": {step},' not in (metrics.read_text() if metrics.exists() else ""):
        assert process.poll() is None
        assert time.monotonic() < deadline
        process.stderr.read1(64)  # waits until the progress bar moves
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "samples" / "samples.npy").exists()

    finish(start(killed, data_dir))
    for ema in (True, False):
        states = [training.restore(workdir, ema=ema)[1] for workdir in (whole, killed)]
        jax.tree.map(np.testing.assert_array_equal, *states)
    assert measured(killed) == measured(whole)
    assert (killed / "samples" / "samples.npy").read_bytes() == (
        whole / "samples" / "samples.npy"
    ).read_bytes()
