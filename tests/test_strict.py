"""The checks that the tests of the pure mathematics run with are on in them, and find what they look for."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

HERE = Path(__file__).parent
ROOMS = ("noise", "densities", "losses", "score_matching", "langevin", "samplers", "restoration")
MODELS = ("blocks", "layers", "mlp", "ncsn", "ncsnv2", "score_fn")
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


@pytest.mark.parametrize("name", [*ROOMS, *(f"models/{name}" for name in MODELS)])
def test_the_mathematics_is_tested_strictly(name):
    path = HERE / f"{name}.py"
    assert STRICT in path.with_name(f"test_{path.name}").read_text().splitlines()
