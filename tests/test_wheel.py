"""The wheel: its mathematics need few packages, and its program finds the experiments."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = """
import importlib.util, pathlib
import ncsn_jax
from ncsn_jax import GaussianMixture, NCSN
from ncsn_jax.interop import load_torch_checkpoint
from ncsn_jax.training import example_loss, step, state, objective, parallel, optimizers
import jax, jax.numpy as jnp
p = GaussianMixture([1.0], [[0.0]], [1.0])
print(p.score(jnp.ones(1)), "site-packages" in ncsn_jax.__file__)
model = NCSN(sigmas=(1.0, 0.1), num_filters=2)
shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.ones(1))
print(len(shapes["params"]) > 3)
for name in ("Experiment", "train"):
    try:
        getattr(ncsn_jax.training, name)
    except ModuleNotFoundError as error:
        print(error)
absent = "tensorflow_datasets grain matplotlib pydantic tensorboardX ml_collections"
print([name for name in absent.split() if importlib.util.find_spec(name)])
"""


def sh(*command, cwd, **environment):
    """The output of a command that succeeds."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    place = tmp_path_factory.mktemp("wheel")
    sh(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", place, ROOT, cwd=place)
    (path,) = place.glob("*.whl")
    return path


def environment(directory, *packages):
    """A new environment with packages; its directory of programs."""
    sh(sys.executable, "-m", "venv", directory, cwd=directory.parent)
    constraints = ROOT / "constraints.txt"
    pip = (directory / "bin" / "python", "-m", "pip", "install", "--quiet", "--constraint", constraints)
    sh(*pip, *packages, cwd=directory.parent)
    return directory / "bin"


@pytest.mark.slow
def test_the_wheel_alone_has_the_mathematics_and_says_how_to_get_the_rest(wheel, tmp_path):
    bin = environment(tmp_path / "core", wheel)
    (tmp_path / "empty").mkdir()
    lines = sh(bin / "python", "-c", PROGRAM, cwd=tmp_path / "empty").splitlines()
    assert lines[:2] == ["[-1.] True", "True"]
    for line, name in zip(lines[2:4], ("Experiment", "train"), strict=True):
        assert line.startswith(
            f"ncsn_jax.training.{name} needs absl" if "absl" in line else "ncsn_jax.training"
        )
        assert line.endswith("pip install 'ncsn_jax[app]'")
    assert lines[4] == "[]"
    program = subprocess.run([str(bin / "ncsn-jax")], cwd=tmp_path, capture_output=True, text=True)
    assert program.returncode == 1
    assert program.stderr.count("\n") == 1
    assert "pip install 'ncsn_jax[app]'" in program.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_the_program_trains_samples_and_resumes_an_experiment_by_its_name(wheel, tmp_path, kind):
    source = [f"{wheel}[app]"] if kind == "wheel" else ["--editable", f"{ROOT}[app]"]
    program = environment(tmp_path / "app", *source) / "ncsn-jax"
    (tmp_path / "empty").mkdir()
    small = ["--config.training.batch_size=4", "--config.training.eval_examples=4"]
    small += ["--config.training.preview_samples=1", "--config.sampling.steps_per_scale=1", "--num_samples=2"]
    steps = ["--config.training.num_steps=4", f"--config.data.data_dir={tmp_path}/tfds"]
    out = sh(program, "--config", "digits", *small, *steps, cwd=tmp_path / "empty")
    *_, line = out.splitlines()  # TFDS prints, too
    assert line == "runs/digits/samples: grid.png, annealing.gif, samples.npy (2 samples)"
    sh(program, "--mode", "sample", "--workdir", "runs/digits", "--num_samples=2", cwd=tmp_path / "empty")
    sh(program, "--workdir", "runs/digits", "--num_samples=2", cwd=tmp_path / "empty")
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["runs"]
