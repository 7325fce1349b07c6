"""The checks of the fixture `strict`, which conftest.py gives to this file and to all of the mathematics."""

import jax
import jax.numpy as jnp
import pytest


def test_strict_fixture_raises_for_a_leaked_tracer():
    leaked = []
    with pytest.raises(Exception, match="Leaked trace"):
        jax.jit(leaked.append)(1.0)


@pytest.mark.parametrize("function", [jnp.log, jax.jit(jnp.log)], ids=["eager", "compiled"])
def test_strict_fixture_raises_for_a_nan(function):
    with pytest.raises(FloatingPointError, match="nan"):
        function(-1.0)
