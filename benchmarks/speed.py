"""Speed of training and sampling of a config on this machine.

    python -m benchmarks.speed configs/digits.py configs/mnist.py:small

Prints one line per config: seconds to the end of the first training step and of the first sampled level (both
mostly compilation), training images/s (the median step), sampling images/s (a whole annealing), and the peak
memory of the process. The examples are noise, because speed doesn't depend on them.
"""

import argparse
import functools
import resource
import runpy
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from ncsn_jax import as_score_fn
from ncsn_jax.app.build import build, dataset_info
from ncsn_jax.app.config import Config, parse
from ncsn_jax.app.from_data import resolved
from ncsn_jax.app.methods import recipe_of
from ncsn_jax.data import Batch, Dataset, training_batches
from ncsn_jax.runtime import chains
from ncsn_jax.runtime.batch_size import chains_at_once
from ncsn_jax.runtime.compiling import set_xla_flags
from ncsn_jax.training import Experiment
from ncsn_jax.training.parallel import PmapStep, pmap_step, replicate

STEPS = 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Speed of training and sampling of a config on this machine."
    )
    parser.add_argument("configs", nargs="+", metavar="configs/NAME.py[:ARGUMENT]")
    configs = parser.parse_args().configs
    if len(configs) > 1:  # each in its own process, to measure its memory alone
        for name in configs:
            subprocess.run([sys.executable, "-m", "benchmarks.speed", name], check=True)
        return
    measure(configs[0], load(configs[0]))


def load(name: str) -> Config:
    """Return the config that `configs/NAME.py[:ARGUMENT]` makes."""
    path, _, argument = name.partition(":")
    get_config = runpy.run_path(path)["get_config"]
    return parse(get_config(*filter(None, [argument])).to_dict())


def of_noise(run: Config) -> Experiment:
    """Return the config's experiment on examples of noise, two batches of them."""
    info = dataset_info(run)
    rng, shape = np.random.default_rng(0), (2 * run.training.batch_size, *info.shape)
    images = info.num_values is not None
    examples = rng.integers(0, 256, shape, np.uint8) if images else rng.normal(size=shape).astype(np.float32)
    dataset = Dataset("noise", info, examples, examples)
    return build(resolved(run, Path("no run"), lambda: dataset), dataset)


def training(experiment: Experiment) -> tuple[PmapStep, Iterator[Batch]]:
    """Return the experiment's training step on all devices, and batches for it."""
    settings = experiment.settings
    step = pmap_step(
        loss=experiment.loss(training=True), optimizer=experiment.optimizer, ema_rate=settings.ema_rate
    )
    return step, training_batches(experiment.train, batch_size=settings.batch_size, seed=0)


def measure(name: str, run: Config) -> None:
    experiment, batch_size = of_noise(run), run.training.batch_size
    state, (run_step, batches) = replicate(experiment.initial_state()), training(experiment)
    seconds = []
    for _ in range(1 + STEPS):
        began = time.monotonic()
        state, values = run_step(state, next(batches), jax.random.key(0))
        jax.block_until_ready(values)
        seconds.append(time.monotonic() - began)
    first_step, step_seconds = seconds[0], np.median(seconds[1:])

    score_fn = as_score_fn(experiment.model, {"params": state.ema_params})
    info = dataset_info(run)
    size = chains_at_once(run.sampling.batch_size, experiment.model, info.shape)
    (numbers,) = chains.batches(size, size)
    recipe = recipe_of(run.sampling, run.model.noise_levels, info)
    draw = functools.partial(chains.draw, score_fn, recipe, numbers)
    began = time.monotonic()
    states = draw()
    next(states)
    jax.block_until_ready(next(states))
    cold = time.monotonic() - began
    for x in states:  # the denoising compiles, too
        jax.block_until_ready(x)
    began = time.monotonic()
    for x in draw():
        jax.block_until_ready(x)
    warm = time.monotonic() - began
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{name}: first step {first_step:.0f} s, training {batch_size / step_seconds:.1f} images/s; "
        f"first sampling {cold:.0f} s, then {numbers.size / warm:.2f} images/s; "
        f"peak memory {gigabytes:.1f} GiB",
        flush=True,
    )


if __name__ == "__main__":
    set_xla_flags()
    main()
