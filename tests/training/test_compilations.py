"""Compilations of a run: every program once, in its first round."""

import jax
import pytest

from ncsn_jax import training
from ncsn_jax.app.build import network
from ncsn_jax.app.config import MlpModel, Sampling
from ncsn_jax.app.sample import write_samples
from ncsn_jax.data import DatasetInfo
from ncsn_jax.models import as_score_fn
from ncsn_jax.training import loop


@pytest.fixture
def compiled():
    """Names of the programs compiled since, in their order."""
    names = []

    def listen(event, duration, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="module")
def tiny_config(tiny_config):
    """A config of a width that no other test compiles."""
    return tiny_config.model_copy(update={"model": MlpModel(num_features=7, num_layers=2, num_scales=3)})


def test_a_run_compiles_nothing_after_its_first_round(tiny_config, tmp_path, monkeypatch, compiled):
    """A round: steps, the held-out loss with a smaller last batch, a picture, a checkpoint; there are two."""
    until = {}
    add = loop.StepLog.add

    def counting(log, step, values):
        until[step] = len(compiled)
        add(log, step, values)

    monkeypatch.setattr(loop.StepLog, "add", counting)
    training.train_and_evaluate(tiny_config, tmp_path / "run")
    # The step's two programs compile ahead, and not again; jax calls a function under pmap "_fun".
    assert sum("_fun" in name or "loss_and_gradient" in name for name in compiled[: until[1]]) == 1
    assert sum("update" in name for name in compiled[: until[1]]) == 1
    assert until[21] > until[20]  # the first round's other programs
    assert len(compiled) == until[21], compiled[until[21] :]


def test_sampling_another_number_of_samples_compiles_nothing(tiny_config, tmp_path, compiled):
    model = network(tiny_config)
    params = model.init(jax.random.key(0), jax.numpy.zeros((1, 2)), jax.numpy.ones(1))
    settings = Sampling(batch_size=8, steps_per_scale=2, denoise=True)

    def write(count):
        write_samples(
            tmp_path / str(count),
            as_score_fn(model, params),
            DatasetInfo((2,), num_values=None),
            tiny_config.model.noise_levels,
            settings.model_copy(update={"num_samples": count}),
        )

    write(6)
    assert compiled
    compiled.clear()
    write(19)
    assert compiled == []
