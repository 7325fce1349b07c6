"""The checks that the tests of the pure mathematics run with are on in them, and find what they look for."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

HERE = Path(__file__).parent
ROOMS = ("noise", "densities", "losses", "score_matching", "langevin", "samplers", "restoration")
COMPARED = {HERE / "models" / f"test_{name}.py" for name in ("dtype", "official")}
"""Whole networks, compared in number; the leak checker traces each of their layers anew, others test them."""
STRICT = 'pytestmark = pytest.mark.usefixtures("strict")'
pytestmark = pytest.mark.usefixtures("strict")


def test_a_leaked_tracer_raises():
    leaked = []
    with pytest.raises(Exception, match="Leaked trace"):
        jax.jit(leaked.append)(1.0)


@pytest.mark.parametrize("function", [jnp.log, jax.jit(jnp.log)], ids=["eager", "compiled"])
def test_a_nan_raises(function):
    with pytest.raises(FloatingPointError, match="nan"):
        function(-1.0)


@pytest.mark.parametrize(
    "path",
    [
        *(HERE / f"test_{room}.py" for room in ROOMS),
        *sorted({*(HERE / "models").glob("test_*.py")} - COMPARED),
    ],
    ids=lambda p: p.stem,
)
def test_the_mathematics_is_tested_strictly(path):
    assert STRICT in path.read_text().splitlines()
