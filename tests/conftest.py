"""Four fake CPU devices, shapes and dtypes checked at every call, and no implicit rank promotion."""

import functools
import gc
import importlib
import importlib.util
import os
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"

import diffrax
import jax
import jaxtyping
import numpy as np
import pytest

# Import these before the hook, which would inspect their modules one by one.
for name in (
    "flax.linen",
    "grain",
    "matplotlib.pyplot",
    "optax",
    "orbax.checkpoint",
    "scipy.stats",
    "sklearn.datasets",
    "tensorboardX",
    "tensorflow_datasets",
):
    importlib.import_module(name)
jaxtyping.install_import_hook("ncsn_jax", "beartype.beartype")

from ncsn_jax.app.config import Config, MlpModel, Sampling, Training
from ncsn_jax.data import Data
from ncsn_jax.runtime import chains
from ncsn_jax.runtime.files import limit_size
from tests.tiny import TinyScore

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tests compile much and compute little.
jax.config.update("jax_disable_most_optimizations", True)


TESTS = Path(__file__).parent
OF_MATHEMATICS = {
    *(
        TESTS / f"test_{name}.py"
        for name in ("noise", "densities", "losses", "score_matching", "posterior", "strict")
    ),
    *(TESTS / "samplers" / f"test_{name}.py" for name in ("langevin", "samplers")),
}
COMPARED = {TESTS / "models" / f"test_{name}.py" for name in ("dtype", "ncsnpp", "official")}
"""Whole networks whose numbers are compared; the leak checker would trace each of their layers again."""

MAX_CACHE = 2 * 2**30
"""Bytes of compiled programs that a session takes from those before it."""


@pytest.fixture(autouse=True, scope="session")
def compilation_cache(pytestconfig):
    """Compiled programs that all processes and sessions share, in pytest's cache directory."""
    jax.config.update("jax_compilation_cache_dir", str(pytestconfig.cache.mkdir("jax")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_configure(config):
    assert all(path.exists() for path in OF_MATHEMATICS | COMPARED)
    if not hasattr(config, "workerinput"):  # before there are any
        limit_size(config.cache.mkdir("jax"), MAX_CACHE)


@pytest.fixture(scope="module")
def optimized():
    """Programs as users compile them, for long computations and for numbers that are compared."""
    jax.clear_caches()  # the caches ignore this option, and the two kinds of program round differently
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module")
def strict(optimized):
    """Leaked tracers and new NaNs raise; used by the tests of the mathematics."""
    # A finalizer that raises within a trace keeps its tracers; let finalizers of earlier modules raise here.
    gc.collect()
    with pytest.MonkeyPatch.context() as patch, jax.checking_leaks(), jax.debug_nans(True):
        # Equinox, which diffrax is made with, keeps the tracers of its loop's backward pass.
        patch.setattr(diffrax, "diffeqsolve", jax.check_tracer_leaks(False)(diffrax.diffeqsolve))
        yield


@pytest.fixture(scope="module", autouse=True)
def strict_mathematics(request):
    """Makes the tests of the pure mathematics and of the networks strict."""
    if request.path in OF_MATHEMATICS or (
        request.path.parent.name == "models" and request.path not in COMPARED
    ):
        request.getfixturevalue("strict")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> str:
    """A directory of prepared datasets that every test shares."""
    return str(tmp_path_factory.mktemp("tfds"))


@functools.cache
def load_fixture(name: str) -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parent / "fixtures" / name) as file:
        return dict(file)


@pytest.fixture(scope="session")
def fixture():
    """Loads a file of `tests/fixtures`: numbers of the official PyTorch code, by name."""
    return load_fixture


@pytest.fixture(scope="session")
def official() -> dict[str, np.ndarray]:
    """Weights, inputs and outputs of the official PyTorch NCSN with 8 filters, on 28×28×1 images."""
    return load_fixture("ncsn_28x1_ngf8.npz")


@pytest.fixture
def local_devices(monkeypatch):
    """Makes sampling run on the first few of the four devices."""

    def clear():
        for cached in (chains._pmapped_start, chains._pmapped_step, chains._pmapped_finish):
            cached.cache_clear()

    def use(count):
        some = jax.devices()[:count]
        monkeypatch.setattr(jax, "local_devices", lambda: some)
        monkeypatch.setattr(jax, "local_device_count", lambda: count)
        clear()

    yield use
    clear()


@pytest.fixture(scope="session")
def unchecked():
    """Loads a module as users import it, without the shape checks that the tests add to every call."""

    def load(module):
        spec = importlib.util.spec_from_file_location(
            f"unchecked_{Path(module.__file__).stem}", module.__file__
        )
        unchecked = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(unchecked)
        return unchecked

    return load


@pytest.fixture(scope="session")
def tiny_score():
    """A network that compiles within a second."""
    return TinyScore()


@pytest.fixture(scope="session")
def tiny_config():
    """40 steps on points, with a checkpoint every 10; test_kill.py and test_cli.py train on images."""
    return Config(
        seed=3,
        data=Data(name="two_moons"),
        model=MlpModel(num_features=8, num_layers=2, num_scales=3),
        training=Training(
            num_steps=40,
            batch_size=8,
            warmup_steps=4,
            gradient_clip=100.0,
            ema_rate=0.9,
            log_every=10,
            eval_every=20,
            eval_examples=12,
            checkpoint_every=10,
            keep_checkpoints=2,
            preview_every=20,
            preview_samples=4,
        ),
        sampling=Sampling(num_samples=6, batch_size=4, steps_per_scale=2, denoise=True),
    )
