import subprocess
import sys

HEAVY = ("tensorflow_datasets", "matplotlib", "orbax", "grain", "tensorboardX", "pydantic", "sklearn")

PROGRAM = """
import sys
import jax, flax, optax
before = set(sys.modules)
import ncsn_jax
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""


def test_the_library_imports_without_the_application():
    """What `import ncsn_jax` adds to `import jax, flax, optax`; they load absl themselves."""
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    added = result.stdout.split()
    assert "ncsn_jax" in added
    assert not set(added) & {*HEAVY, "absl"}
