"""Long computations in parts: each part is made once, by one of the processes, and is a file from then on.

Killed at any instant and started again, a computation goes on with the first part that has no file. A part
holds the same numbers wherever and whenever it is made.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from ncsn_jax.errors import UserError
from ncsn_jax.files import write_whole
from ncsn_jax.hosts import wait_for_all

Arrays = Mapping[str, np.ndarray]


class Parts:
    """The files of a computation.

    Args:
      paths: of its parts, in their order.
    """

    def __init__(self, paths: list[Path]):
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> Arrays:
        """The arrays of one part."""
        with np.load(self._paths[number]) as file:
            return dict(file)

    def together(self, name: str) -> np.ndarray:
        """The arrays of one name, one after the other."""
        return np.concatenate([part[name] for part in map(self.__getitem__, range(len(self)))])


def compute_parts(directory: Path, count: int, compute: Callable[[int], Arrays], *, desc: str) -> Parts:
    """Computes the parts that have no file yet, with a progress bar; every process its share of them.

    Args:
      directory: where the files lie, on a disk that all processes see.
      count: how many parts there are.
      compute: from a part's number to its arrays.
      desc: what the progress bar says.

    Raises:
      UserError: if a process doesn't see the files that others have written.
    """
    paths = [directory / f"{number:06}.npz" for number in range(count)]
    mine = range(jax.process_index(), count, jax.process_count())
    missing = [number for number in mine if not paths[number].exists()]
    if missing:
        directory.mkdir(parents=True, exist_ok=True)
    for number in tqdm(missing, desc=desc, unit="part", disable=not missing):
        arrays = dict(compute(number))
        write_whole(paths[number], lambda file, arrays=arrays: np.savez(file, allow_pickle=False, **arrays))
    wait_for_all(str(directory))
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: another process's part isn't here; accepted: a workdir that all share")
    return Parts(paths)


def fingerprint(*values: Any) -> str:
    """16 hexadecimal digits that tell values apart: numbers, words, arrays, and trees of them."""
    leaves, tree = jax.tree.flatten(values)
    digest = hashlib.sha256(str(tree).encode())
    for leaf in leaves:
        if hasattr(leaf, "dtype"):
            array = np.ascontiguousarray(leaf)
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(array.data)
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()[:16]
