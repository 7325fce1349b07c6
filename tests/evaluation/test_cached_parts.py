"""Computing in parts: each once, whole or not at all."""

import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax.evaluation import cached_parts
from ncsn_jax.evaluation.cached_parts import compute_parts, fingerprint, write_whole
from ncsn_jax.runtime.errors import UserError


def squares(computed):
    def compute(number):
        computed.append(number)
        return {"x": np.full(3, number**2)}

    return compute


def test_parts_are_computed_once_and_returned_in_order(tmp_path):
    computed = []
    found = compute_parts(tmp_path / "a", 12, squares(computed), desc="squares")
    assert computed == list(range(12))
    np.testing.assert_array_equal(found[11]["x"], [121] * 3)
    np.testing.assert_array_equal([part["x"][0] for part in found], np.arange(12) ** 2)
    assert len(found) == 12
    (tmp_path / "a" / "000003.npz").unlink()
    compute_parts(tmp_path / "a", 13, squares(computed), desc="squares")
    assert computed == [*range(12), 3, 12]


def test_an_interruption_loses_only_the_part_being_computed(tmp_path):
    computed = []

    def interrupted(number):
        if len(computed) == 4:
            raise KeyboardInterrupt
        return squares(computed)(number)

    with pytest.raises(KeyboardInterrupt):
        compute_parts(tmp_path, 6, interrupted, desc="squares")
    compute_parts(tmp_path, 6, squares(computed), desc="squares")
    assert computed == [0, 1, 2, 3, 4, 5]


def test_an_interrupted_write_leaves_no_file(tmp_path):
    path = tmp_path / "000000.npz"

    def killed(file):
        file.write(b"half of it")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, killed)
    assert not path.exists()
    computed = []
    compute_parts(tmp_path, 1, squares(computed), desc="squares")
    assert computed == [0]


def test_processes_share_parts_and_report_parts_missing_from_their_workdir(tmp_path, monkeypatch):
    monkeypatch.setattr(cached_parts.jax, "process_count", lambda: 2)
    monkeypatch.setattr(cached_parts, "wait_for_all", lambda what: None)
    computed = []
    monkeypatch.setattr(cached_parts.jax, "process_index", lambda: 1)
    with pytest.raises(
        UserError, match=r"000000\.npz: another process's part is missing; accepted: a workdir"
    ):
        compute_parts(tmp_path, 5, squares(computed), desc="squares")
    assert computed == [1, 3]
    monkeypatch.setattr(cached_parts.jax, "process_index", lambda: 0)
    compute_parts(tmp_path, 5, squares(computed), desc="squares")
    assert computed == [1, 3, 0, 2, 4]


def test_fingerprints_differ_by_value_type_name_dtype_and_shape():
    values = [
        (1, 2),
        (2, 1),
        (1, 2.0),
        ("1", 2),
        (1, None),
        ({"a": np.zeros(2)}, 1),
        ({"b": np.zeros(2)}, 1),
        ({"a": np.zeros(2, np.float32)}, 1),
        ({"a": np.zeros((2, 1))}, 1),
        ({"a": np.array([0.0, 1e-300])}, 1),
    ]
    assert len({fingerprint(*value) for value in values}) == len(values)
    assert fingerprint({"a": jnp.ones(3)}) == fingerprint({"a": np.ones(3, np.float32)})
