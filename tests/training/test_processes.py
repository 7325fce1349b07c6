"""Real processes: several in one run, SIGTERM, and errors that stop them all."""

import contextlib
import itertools
import json
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
from etils import epath

from benchmarks import processes
from ncsn_jax import training
from ncsn_jax.training.checkpoints import steps_in

TOPOLOGIES = {"2×2": (2, 2), "1×4": (1, 4), "1×1": (1, 1)}
"""Processes × devices."""


def arguments(workdir, *more):
    options = {
        "model.num_features": 8,
        "model.num_scales": 3,
        "training.num_steps": 20,
        "training.batch_size": 8,
        "training.schedule": "constant",
        "training.log_every": 1,
        "training.checkpoint_every": 10,
        "training.preview_samples": 2,
        "training.eval_examples": 8,
        "sampling.num_samples": 2,
        "sampling.steps_per_scale": 2,
    }
    flags = [f"--config.{name}={value}" for name, value in options.items()]
    config = processes.ROOT / "configs" / "toy.py"
    return [f"--config={config}:two_moons", f"--workdir={workdir}", *flags, *more]


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def checkpoint_steps(workdir):
    return steps_in(epath.Path(workdir / "checkpoints"))


def losses(workdir):
    return [line["loss"] for line in lines(workdir) if "loss" in line]


def run(topology, *words, **options):
    count, devices = TOPOLOGIES[topology]
    return processes.finish(processes.start(words, processes=count, devices=devices), **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The directory of a run on each topology."""
    directory = tmp_path_factory.mktemp("whole")
    for topology in TOPOLOGIES:
        run(topology, *arguments(directory / topology))
    return directory


def test_two_processes_train_one_run_together(tmp_path):
    processes.finish(processes.start(arguments(tmp_path, "--config.training.num_steps=3"), processes=2))
    assert len(losses(tmp_path)) == 3
    assert checkpoint_steps(tmp_path) == [3]


@pytest.mark.slow
def test_losses_do_not_depend_on_the_number_of_processes_and_devices(whole):
    found = {topology: losses(whole / topology) for topology in TOPOLOGIES}
    assert len(found["1×1"]) == 20
    for topology in TOPOLOGIES:
        np.testing.assert_allclose(found[topology], found["1×1"], rtol=1e-5)
        assert checkpoint_steps(whole / topology) == [10, 20]


@pytest.mark.parametrize(("first", "then"), list(itertools.permutations(TOPOLOGIES, 2)))
@pytest.mark.slow
def test_a_run_resumes_on_another_number_of_processes_and_devices(whole, tmp_path, first, then):
    """Half of the steps on one topology, half on another: the losses equal the whole run's."""
    run(first, *arguments(tmp_path, "--config.training.num_steps=10"))
    (error, *_) = run(then, *arguments(tmp_path))
    assert "resumes from step 10, with training.num_steps=20 (was 10)" in error
    if (TOPOLOGIES[first][0]) != TOPOLOGIES[then][0]:
        assert f"processes {TOPOLOGIES[then][0]} (was {TOPOLOGIES[first][0]})" in error
    np.testing.assert_allclose(losses(tmp_path), losses(whole / "1×1"), rtol=1e-5)


@pytest.mark.parametrize("difference", ["--config.training.learning_rate=2e-3", "--config.seed=7"])
@pytest.mark.slow
def test_processes_with_different_configs_stop_before_the_first_step(tmp_path, difference):
    started = processes.start(arguments(tmp_path / "run"), processes=2, of_last=[difference])
    name = difference.removeprefix("--").split("=")[0]
    for error in processes.finish(started, status=1):
        (line,) = [line for line in error.splitlines() if line.startswith("main.py")]
        assert f"process 1 has {name}=" in line
        assert "like process 0: run the same version" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_processes(tmp_path):
    """The first process's workdir is a file; the other's is not read."""
    (tmp_path / "file").write_text("precious")
    started = processes.start(
        arguments(tmp_path / "file"), processes=2, of_last=[f"--workdir={tmp_path}/run"]
    )
    for error in processes.finish(started, status=1, timeout=60):
        assert f"{tmp_path}/file can't be written" in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def until(started, workdir, step):
    """Wait until the metrics hold a line of a step."""
    metrics = workdir / "metrics.jsonl"
    while not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
        assert [process.poll() for process in started] == [None] * len(started)
        started[0].stderr.read(64)  # waits until the progress bar moves


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.slow
def test_sigterm_saves_a_checkpoint_and_ends_every_process(tmp_path, count):
    """Only the last process gets the signal; all of them save the same step."""
    command = arguments(
        tmp_path, "--config.training.num_steps=100000", "--config.training.checkpoint_every=100000"
    )
    started = processes.start(command, processes=count)
    until(started, tmp_path, 30)
    started[-1].send_signal(signal.SIGTERM)
    began = time.monotonic()
    errors = processes.finish(started, status=143)
    assert time.monotonic() - began < 10
    (step,) = checkpoint_steps(tmp_path)
    assert step >= 30
    for error in errors:
        assert f"preempted: saved at step {step}; rerun to resume" in error
    assert lines(tmp_path)[-1]["step"] == step  # none was lost
    training.restore(tmp_path)


@pytest.mark.slow
def test_sigterm_before_the_first_step_ends_without_a_checkpoint(tmp_path):
    (process,) = processes.start(arguments(tmp_path / "run"))
    while not (tmp_path / "run" / "config.json").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    processes.finish([process], status=-signal.SIGTERM)
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    run("1×1", *arguments(tmp_path / "run"))


@pytest.mark.slow
def test_a_preempted_run_ends_equal_to_an_uninterrupted_one(whole, tmp_path):
    """Stopped between two checkpoints, it resumes from the saved step."""
    (process,) = processes.start(arguments(tmp_path, "--config.training.num_steps=3000"))
    until([process], tmp_path, 100)
    process.send_signal(signal.SIGTERM)
    processes.finish([process], status=143)
    for workdir in (tmp_path, tmp_path / "whole"):
        run("1×1", *arguments(workdir, "--config.training.num_steps=3000"))
    states = [training.restore(workdir)[1] for workdir in (tmp_path, tmp_path / "whole")]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert losses(tmp_path) == losses(tmp_path / "whole")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 3 MB; only root can make one."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path)], check=False)
    if mounted.returncode:
        pytest.skip("no permission to mount a disk")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@pytest.mark.slow
def test_training_continues_while_the_disk_is_full(small_disk):
    """The disk is full from step 100 until saves have failed; training ends with every line of its log."""
    workdir = small_disk / "run"
    intervals = [
        f"--config.training.{name}={every}" for name, every in (("log_every", 50), ("preview_every", 150))
    ]
    (process,) = processes.start(arguments(workdir, *intervals, "--config.training.num_steps=3000"))
    until([process], workdir, 100)
    with (small_disk / "filling").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    said = ""
    while "failure 2 of at most 100" not in said:
        assert process.poll() is None, said
        said += process.stderr.readline()
    training.restore(workdir)
    (small_disk / "filling").unlink()
    (rest,) = processes.finish([process])
    assert "the state of step" in said
    assert "can't be saved (No space left on device); training continues and will retry" in said
    assert "Traceback" not in said + rest
    assert [line["step"] for line in lines(workdir) if "loss" in line][-1] == 3000
    steps = [line["step"] for line in lines(workdir) if "loss" in line]
    assert steps == sorted(set(steps))
    assert set(range(50, 3001, 50)) <= set(steps)
    assert checkpoint_steps(workdir)[-1] == 3000
    training.restore(workdir)
