"""The record of a checkpoint: the run it belongs to, and a checksum of every array.

The record is committed with the arrays and has its own checksum, which tells a damaged checkpoint from
a checkpoint of a different run.
"""

import concurrent.futures
import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ncsn_jax.runtime.determinism import recorded

Record = dict[str, Any]
"""JSON: `step`, `config`, `data`, `inputs`, `topology`, `versions`, `jax` (its settings), `test_loss`,
`callbacks`, `ema_lengths`, `num_updates`, `leaves`; `sha256` of all these."""

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")


def run_facts(
    content: dict[str, Any],
    data: dict[str, Any] | None,
    inputs: list[int] | None = None,
    ema_lengths: Sequence[float] = (),
) -> Record:
    """Return the part of the record that all checkpoints of a run share.

    Args:
      content: the content of the run's `config.json`.
      data: the dataset's fingerprint, if known.
      inputs: the shape of the network's x, if it takes nothing else but σ.
      ema_lengths: the lengths of the averages by power functions.
    """
    return {
        "config": content,
        "data": data,
        "inputs": inputs,
        "ema_lengths": list(ema_lengths),
        "topology": {
            "processes": jax.process_count(),
            "devices": jax.device_count(),
            "platform": jax.devices()[0].platform,
        },
        "versions": versions(),
        "jax": recorded(),
    }


def make_record(
    facts: Record,
    step: int,
    state: Any,
    test_loss: float | None = None,
    callbacks: int = 0,
    num_updates: int | None = None,
) -> Record:
    """Return the record of a state.

    Args:
      facts: the run's `run_facts`.
      step: number of updates made.
      state: the arrays.
      test_loss: the held-out loss, if known.
      callbacks: number of callbacks of this step that have run; a resumed run runs the others.
      num_updates: number of steps that weren't skipped.
    """
    record = facts | {
        "step": step,
        "test_loss": test_loss,
        "callbacks": callbacks,
        "num_updates": num_updates,
        "leaves": checksums(state),
    }
    return record | {"sha256": _sha256(record)}


def is_whole(record: Any) -> bool:
    """Return whether the record matches its checksum."""
    if not isinstance(record, dict) or "sha256" not in record:
        return False
    return record["sha256"] == _sha256({name: record[name] for name in record if name != "sha256"})


def checksums(tree: Any) -> list[list]:
    """Return the path, shape, dtype and SHA-256 of every array."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(lambda leaf: _checksum(jax.tree_util.keystr(leaf[0]), leaf[1]), leaves))


def shapes(tree: Any) -> list[list]:
    """Return the path, shape and dtype of every array, which may be abstract: `checksums` without SHA-256."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [[jax.tree_util.keystr(path), list(leaf.shape), str(leaf.dtype)] for path, leaf in leaves]


def versions() -> dict[str, str]:
    """Return the versions of the packages that affect a result, and a checksum of this package's code."""
    package = Path(__file__).parents[1]
    code = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        code.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return {"ncsn_jax": code.hexdigest()[:16]} | {p: importlib.metadata.version(p) for p in PACKAGES}


def _checksum(path: str, leaf: Any) -> list:
    array = np.ascontiguousarray(leaf)
    return [
        path,
        list(leaf.shape),
        str(array.dtype),
        hashlib.sha256(array.reshape(-1).view(np.uint8)).hexdigest(),
    ]


def _sha256(record: Any) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
