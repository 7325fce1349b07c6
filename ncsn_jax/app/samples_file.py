"""Files of samples: chains are run batch by batch, with a progress bar, and written with their settings."""

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from ncsn_jax.runtime import processes
from ncsn_jax.runtime.chains import NOT_FINITE, Numbers, States, rows
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.runtime.files import write_whole

SAMPLES, SETTINGS = "samples.npy", "settings.json"
MAX_FRAMES = 60
"""Largest number of frames of an animation; samplers with more steps skip some."""


def announce_replacement(directory: Path, settings: Mapping[str, Any]) -> None:
    """Log which samples of a directory are about to be replaced, and how they were drawn.

    Args:
      directory: the directory of the samples and of the settings that `write_batches` wrote with them.
      settings: the settings of the new samples, by name.
    """
    if not (directory / SAMPLES).exists():
        return
    earlier, how = "samples", "drawn with unknown settings"
    with contextlib.suppress(Exception), (directory / SAMPLES).open("rb") as file:
        np.lib.format.read_magic(file)
        earlier = f"{np.lib.format.read_array_header_1_0(file)[0][0]} samples"
    with contextlib.suppress(Exception):  # damaged, or of an older version
        known = json.loads((directory / SETTINGS).read_text("utf-8"))
        old, earlier = known["settings"], f"{known['num_samples']} samples"
        names = [name for name in old | settings if old.get(name) != settings.get(name)]
        how = f"drawn with {', '.join(f'{n}={old.get(n)!r}' for n in names) or 'the same settings'}"
    processes.say(f"{directory}: replacing {earlier} {how}; --out=NAME keeps both")


class Written(NamedTuple):
    """Result of `write_batches`.

    Attributes:
      path: the file.
      frames: states of the shown samples, at most `MAX_FRAMES` and the last one.
      num_lost: the number of samples that aren't finite.
      num_samples: the number of all samples.
    """

    path: Path
    frames: list[Float[np.ndarray, "shown *event"]]
    num_lost: int
    num_samples: int

    def require_finite(self) -> None:
        """Raise a UserError if some samples aren't finite."""
        if self.num_lost:
            raise UserError(f"{self.path}: {self.num_lost} of {self.num_samples} samples are {NOT_FINITE}")


def write_batches(
    path: Path,
    settings: Mapping[str, Any],
    run: Callable[[Numbers], States],
    numbers: list[Numbers],
    *,
    num_steps: int,
    counts: tuple[int, ...],
    shape: tuple[int, ...],
    shown: Int[np.ndarray, " shown"],
) -> Written:
    """Run chains batch by batch, with a progress bar, and write the last states of each batch.

    Memory holds one batch and the frames, for any number of samples and steps.

    Args:
      path: the `.npy` file, float32, `(*counts, *shape)`.
      settings: the settings of the samples, by name, for `settings.json` next to the file.
      run: the map from the numbers of a batch to its states.
      numbers: the numbers of the samples in each batch.
      num_steps: the number of states after the first.
      counts: the sizes of the samples' axes in the file.
      shape: the shape of one sample.
      shown: the numbers of the samples whose frames are kept, ascending.
    """
    partial = path.with_name(path.name + ".partial")
    file = np.lib.format.open_memmap(partial, "w+", np.float32, (*counts, *shape))
    with partial.open("r+b") as whole:  # so that a full disk is an error here, not a bus error later
        os.posix_fallocate(whole.fileno(), 0, partial.stat().st_size)
    if path.name == SAMPLES:
        announce_replacement(path.parent, settings)
    samples = file.reshape(-1, *shape)
    count, first, num_finite = len(samples), 0, 0
    every = -(-num_steps // MAX_FRAMES)
    frames = {step: [] for step in range(num_steps, -1, -every)}
    with tqdm(total=len(numbers) * num_steps, unit="step", desc=f"{path.parent.name} {count}") as bar:
        for batch in numbers:
            for step, x in enumerate(run(batch)):
                jax.block_until_ready(x)
                if step in frames:
                    here = shown[(first <= shown) & (shown < min(first + batch.size, count))] - first
                    frames[step].append(rows(x)[here])  # a copy: a slice would keep the whole batch
                if step == num_steps:
                    drawn = rows(x)[: count - first]
                    samples[first : first + batch.size] = drawn
                    num_finite += np.isfinite(drawn).reshape(len(drawn), -1).all(axis=1).sum()
                bar.update(min(step, 1))
            first += batch.size
    file.flush()
    partial.rename(path)
    if path.name == SAMPLES:
        text = json.dumps({"num_samples": count, "settings": settings}, indent=1)
        write_whole(path.with_name(SETTINGS), lambda file: file.write(text.encode()))
    kept = [np.concatenate(frames[step]) for step in sorted(frames)]
    return Written(path, kept, count - int(num_finite), count)
