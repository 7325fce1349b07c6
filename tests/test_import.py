import subprocess
import sys
from pathlib import Path

import pytest

from ncsn_jax import training

HEAVY = ("tensorflow_datasets", "matplotlib", "orbax", "grain", "tensorboardX", "pydantic", "sklearn")

PROGRAM = """
import sys
import jax, flax, optax
before = set(sys.modules)
import ncsn_jax
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""


def test_importing_the_library_loads_no_application_dependencies():
    """Compared with `import jax, flax, optax`, which load absl themselves."""
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    added = result.stdout.split()
    assert "ncsn_jax" in added
    assert not set(added) & {*HEAVY, "absl"}


def test_importing_main_loads_neither_matplotlib_nor_evaluation():
    program = "import sys, main; print(*{'matplotlib', 'ncsn_jax.evaluation.loop'} & set(sys.modules))"
    command, root = [sys.executable, "-c", program], Path(__file__).parents[1]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert result.stdout == "\n"


def test_every_name_of_training_is_found_at_first_use():
    for name in training.__all__:
        assert callable(getattr(training, name)) or name == "Objective"
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = training.trian


def test_importing_main_and_parsing_flags_initialise_no_jax_backend():
    """`jax.distributed.initialize` must come before the first use of a device."""
    program = """
import jax._src.xla_bridge
import main
from ncsn_jax.app.flags import parse_flags
parse_flags(["main.py", "--config.training.batch_size=4"], ["train"], "")
assert not jax._src.xla_bridge.backends_are_initialized()
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[1])
