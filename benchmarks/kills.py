"""Comparison of runs under kill -9 at random moments with an uninterrupted run.

    python -m benchmarks.kills                    # a quarter of an hour on 2 cores
    python -m benchmarks.kills --num_kills 4 --seed 1

Trains 200 steps, on one process of four devices and on two of two; kills it equally often while it compiles,
makes steps, saves, evaluates and draws samples; reruns the command each time; and compares the results: every
array of the last state and of the snapshots of averages, bit for bit, the losses of the metrics file, and
the samples.
"""

import argparse
import json
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from benchmarks import processes
from ncsn_jax.app.build import build
from ncsn_jax.app.trained import load_run
from ncsn_jax.training import TrainState
from ncsn_jax.training.checkpoints import Checkpoints
from ncsn_jax.training.workdir import checkpoint_dir

TOPOLOGIES = {"one process": (1, 4), "two processes": (2, 2)}
"""Numbers of processes, and of devices per process."""
EVAL_EVERY, PREVIEW_EVERY = 20, 40
OPTIONS = {
    "model.num_features": 16,
    "model.num_scales": 3,
    "training.num_steps": 200,
    "training.batch_size": 16,
    "training.log_every": 5,
    "training.checkpoint_every": 10,
    "training.ema_lengths": "0.05,0.1",
    "training.ema_rate": 0.0,
    "training.ema_snapshot_every": 10,
    "training.eval_every": EVAL_EVERY,
    "training.eval_examples": 2_000,
    "training.preview_every": PREVIEW_EVERY,
    "training.preview_samples": 500,
    "sampling.num_samples": 500,
    "sampling.batch_size": 100,
    "sampling.steps_per_scale": 100,
}
DEADLINE = 300.0
"""Seconds that a process may take to reach the moment of its kill."""


def command(workdir: Path) -> list[str]:
    """Return the arguments of main.py."""
    config = processes.ROOT / "configs" / "toy.py"
    flags = [f"--config.{name}={value}" for name, value in OPTIONS.items()]
    return [f"--config={config}:two_moons", f"--workdir={workdir}", *flags]


def start(workdir: Path, topology: tuple[int, int], *more: str) -> list[subprocess.Popen]:
    """Start or resume the run."""
    count, devices = topology
    return processes.start([*command(workdir), *more], processes=count, devices=devices)


def lines(workdir: Path) -> list[dict]:
    """Return the complete lines of the metrics file."""
    path = workdir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def measured(workdir: Path) -> list[tuple[int, str, float]]:
    """Return the metrics of the steps, without their speed."""
    names = ("loss", "gradient_norm", "test_loss")
    return [(line["step"], name, line[name]) for line in lines(workdir) for name in names if name in line]


def _is_evaluating(workdir: Path) -> bool:
    last = (lines(workdir) or [{"step": 1}])[-1]
    return last["step"] % EVAL_EVERY == 0 and "loss" in last


def _is_drawing(workdir: Path) -> bool:
    last = (lines(workdir) or [{"step": 1}])[-1]
    is_previewing = last["step"] % PREVIEW_EVERY == 0 and "test_loss" in last
    return is_previewing or (workdir / "samples" / "samples.npy.partial").exists()


MOMENTS: dict[str, tuple[Callable[[Path], bool], float]] = {
    "compiling": (lambda workdir: (workdir / "config.json").exists(), 4.0),
    "stepping": (lambda workdir: len(lines(workdir)) > 0 and "loss" in lines(workdir)[-1], 0.2),
    "saving": (lambda workdir: any(workdir.rglob("*.orbax-checkpoint-tmp")), 0.05),
    "evaluating": (_is_evaluating, 0.1),
    "sampling": (_is_drawing, 0.3),
}
"""Test for each moment, and the largest number of seconds to wait after it."""


def start_and_kill(workdir: Path, moment: str, random_: random.Random, topology: tuple[int, int]) -> bool:
    """Start the command and kill it at a moment; return whether it was still running then."""
    has_come, longest = MOMENTS[moment]
    before = time.time()
    started = start(workdir, topology)
    deadline = time.monotonic() + DEADLINE

    def is_new() -> bool:  # files of an earlier process don't count
        return moment == "compiling" or (
            (workdir / "metrics.jsonl").exists() and (workdir / "metrics.jsonl").stat().st_mtime > before
        )

    while not (is_new() and has_come(workdir)):
        if any(process.poll() is not None for process in started):
            processes.finish(started)
            return False
        if time.monotonic() > deadline:
            raise TimeoutError(f"the moment {moment!r} didn't come in {DEADLINE} s")
        time.sleep(0.002)
    time.sleep(random_.uniform(0.0, longest))
    victims = random_.sample(started, len(started))
    was_alive = victims[0].poll() is None
    for process in victims:  # a launcher, too, kills the others after one has died
        process.kill()
    for process in started:
        process.communicate()
    return was_alive


def survive(
    directory: Path, num_kills: int, random_: random.Random, topology: tuple[int, int]
) -> tuple[dict[str, int], list[Path]]:
    """Kill runs `num_kills` times and finish them; return the kills per moment, and the directories."""
    kills = dict.fromkeys(MOMENTS, 0)
    workdirs = [directory / "0"]
    while sum(kills.values()) < num_kills:
        moment = list(MOMENTS)[sum(kills.values()) % len(MOMENTS)]
        if start_and_kill(workdirs[-1], moment, random_, topology):
            kills[moment] += 1
        else:  # it finished first: start another run
            workdirs.append(directory / str(len(workdirs)))
    processes.finish(start(workdirs[-1], topology))
    return kills, workdirs


def differences(whole: Path, killed: Path) -> list[str]:
    """Return the differences between two finished runs."""
    found = []
    states = [_last_state(workdir) for workdir in (whole, killed)]
    pairs = zip(*map(jax.tree_util.tree_leaves_with_path, states), strict=True)
    found += [jax.tree_util.keystr(path) for (path, a), (_, b) in pairs if not np.array_equal(a, b)]
    if _snapshots(whole) != _snapshots(killed):
        found.append("checkpoints/averages")
    if measured(whole) != measured(killed):
        found.append("metrics.jsonl")
    for name in ("samples/samples.npy", f"samples/step_{OPTIONS['training.num_steps']:08d}.png"):
        if (whole / name).read_bytes() != (killed / name).read_bytes():
            found.append(name)
    return found


def _last_state(workdir: Path) -> TrainState:
    config = load_run(workdir)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        build(config).abstract_state(),
    )
    step = config.training.num_steps
    with Checkpoints(checkpoint_dir(workdir, config.training.checkpoint_dir)) as checkpoints:
        return jax.device_get(checkpoints.restore(step, like, checkpoints.read_record(step)))


def _snapshots(workdir: Path) -> dict[int, list]:
    """Return the checksums of the arrays in each snapshot."""
    with Checkpoints(workdir / "checkpoints" / "averages") as snapshots:
        return {step: snapshots.read_record(step)["leaves"] for step in snapshots.steps}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the result for each topology."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num_kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    for name, topology in TOPOLOGIES.items():
        with tempfile.TemporaryDirectory() as directory:
            whole = Path(directory) / "whole"
            processes.finish(start(whole, topology))
            killed = Path(directory) / "killed"
            kills, workdirs = survive(killed, given.num_kills, random.Random(given.seed), topology)
            wrong = [found for workdir in workdirs for found in differences(whole, workdir)]
            where = ", ".join(f"{count} {moment}" for moment, count in kills.items())
            verdict = (
                f"differ in {', '.join(wrong)}" if wrong else "equal the uninterrupted run's, bit for bit"
            )
            print(f"{name}: {sum(kills.values())} kills ({where}), {len(workdirs)} runs:")
            print(f"  their last states, snapshots, metrics and samples {verdict}")


if __name__ == "__main__":
    main()
