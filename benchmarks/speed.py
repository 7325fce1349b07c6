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

import jax
import numpy as np

from ncsn_jax import as_score_fn, config, data, sampling
from ncsn_jax.runtime.batch_size import chains_at_once
from ncsn_jax.runtime.compiling import set_xla_flags
from ncsn_jax.training import example_loss
from ncsn_jax.training.objective import objective
from ncsn_jax.training.parallel import pmap_step, replicate
from ncsn_jax.training.workdir import initial_state, optimizer

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


def load(name: str) -> config.Config:
    """Return the config that `configs/NAME.py[:ARGUMENT]` makes."""
    path, _, argument = name.partition(":")
    get_config = runpy.run_path(path)["get_config"]
    return config.parse(get_config(*filter(None, [argument])).to_dict())


def training(run: config.Config):
    """Return the config's training step on all devices, and batches of noise for it."""
    info, batch_size = data.describe(run.data), run.training.batch_size
    loss = example_loss(
        run.network(),
        objective(run.model.noise_levels, run.training),
        data.preprocessing(run.data, info),
        flip=run.data.random_flip,
    )
    step = pmap_step(loss=loss, optimizer=optimizer(run), ema_rate=run.training.ema_rate)
    rng, shape = np.random.default_rng(0), (2 * batch_size, *info.shape)
    images = info.num_values is not None
    examples = rng.integers(0, 256, shape, np.uint8) if images else rng.normal(size=shape).astype(np.float32)
    return step, data.training_batches(examples, batch_size=batch_size, seed=0)


def measure(name: str, run: config.Config) -> None:
    batch_size, shape, sigmas = run.training.batch_size, data.describe(run.data).shape, run.model.noise_levels
    state, (run_step, batches) = replicate(initial_state(run)), training(run)
    seconds = []
    for _ in range(1 + STEPS):
        began = time.monotonic()
        state, values = run_step(state, next(batches), jax.random.key(0))
        jax.block_until_ready(values)
        seconds.append(time.monotonic() - began)
    first_step, step_seconds = seconds[0], np.median(seconds[1:])

    score_fn = as_score_fn(run.network(), {"params": state.ema_params})
    size = chains_at_once(run.sampling.batch_size, run.network(), shape)
    (numbers,) = sampling.batches(size, size)
    draw = functools.partial(sampling.draw, score_fn, shape, sigmas, run.sampling, numbers)
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
