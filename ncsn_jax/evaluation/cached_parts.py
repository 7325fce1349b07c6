"""Long computations in parts: one of the processes computes each part once, and writes it to a file.

After a kill at any instant, a restarted computation resumes with the first part that has no file. The numbers
of a part don't depend on where or when it is computed.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from ncsn_jax.runtime.errors import UserError
from ncsn_jax.runtime.files import write_whole
from ncsn_jax.runtime.processes import wait_for_all

Arrays = Mapping[str, np.ndarray]


class Parts:
    """Files of a computation.

    Args:
      paths: the paths of its parts, in order.
    """

    def __init__(self, paths: list[Path]):
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> Arrays:
        """Return the arrays of one part."""
        path = self._paths[number]
        try:
            with path.open("rb") as file, np.load(file) as arrays:
                return dict(arrays)
        except Exception as error:  # damaged files raise many types
            raise UserError(f"{path} is damaged ({type(error).__name__}): delete it, then rerun") from error

    def together(self, name: str) -> np.ndarray:
        """Concatenate the arrays of one name."""
        return np.concatenate([part[name] for part in map(self.__getitem__, range(len(self)))])


def compute_parts(directory: Path, count: int, compute: Callable[[int], Arrays], *, desc: str) -> Parts:
    """Compute the parts that have no file yet, with a progress bar; every process computes its share.

    Args:
      directory: the directory of the files, on a disk that all processes share.
      count: the number of parts.
      compute: the map from a part's number to its arrays.
      desc: the text of the progress bar.

    Raises:
      UserError: if a process doesn't see the files of others.
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
            raise UserError(f"{path}: another process's part is missing; accepted: a workdir that all share")
    return Parts(paths)


def fingerprint(*values: Any) -> str:
    """Return 16 hexadecimal digits that identify values: numbers, strings, arrays, and trees of them."""
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
