"""Cost of the progress bar, the animation's frames and the files, relative to the chains of a sampling.

    python -m benchmarks.animation configs/digits.py

Draws the config's samples to files, by an untrained network, and prints the time outside of the chains as a
fraction of their time: the median and the range. On a shared machine, the difference between two samplings,
with and without files, would be too noisy to show it.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import jax

from benchmarks.speed import load, of_noise
from ncsn_jax import as_score_fn
from ncsn_jax.app import sample
from ncsn_jax.app.build import dataset_info
from ncsn_jax.app.config import Config
from ncsn_jax.models.score_fn import NetworkScore
from ncsn_jax.runtime.chains import States
from ncsn_jax.runtime.compiling import set_xla_flags

REPEATS = 15


class Stopwatch:
    """Wrapper of `draw` that adds up its seconds."""

    def __init__(self):
        self.draw, self.seconds = sample.draw, 0.0

    def __call__(self, *args, **options) -> States:
        states = self.draw(*args, **options)
        while True:
            began = time.perf_counter()
            x = jax.block_until_ready(next(states, None))
            self.seconds += time.perf_counter() - began
            if x is None:
                return
            yield x


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", metavar="configs/NAME.py[:ARGUMENT]")
    run = load(parser.parse_args().config)
    experiment = of_noise(run)
    score_fn = as_score_fn(experiment.model, {"params": experiment.initial_state().params})
    _compiling, *shares = (share(run, score_fn) for _ in range(1 + REPEATS))
    print(f"{statistics.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})")


def share(run: Config, score_fn: NetworkScore) -> float:
    """Measure the time outside of the chains, as a fraction of their time."""
    began, draw = time.perf_counter(), Stopwatch()
    with mock.patch.object(sample, "draw", draw), tempfile.TemporaryDirectory() as directory:
        sigmas = run.model.noise_levels
        sample.write_samples(Path(directory), score_fn, dataset_info(run), sigmas, run.sampling)
    return (time.perf_counter() - began) / draw.seconds - 1


if __name__ == "__main__":
    set_xla_flags()
    main()
