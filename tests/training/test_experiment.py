"""Runs of a network, a loss, an optimizer, data and callbacks of one's own."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.processes import ROOT, _unused_port
from ncsn_jax import as_score_fn
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.training import Settings, restore, train
from ncsn_jax.training.optimizers import muon
from tests.own_run import EXAMPLES, POINTS, Plane, experiment


def lines(workdir, name):
    """The steps of the metrics' lines with a value of a name."""
    found = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in found if name in line]


def assert_equal(state, other):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(other))


def recorder(steps):
    """A callback that notes its steps."""

    def run(step, state, log):
        steps.append(step)
        return {"noted": float(state.step)}

    return 20, run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The state after 60 steps on conditional examples, its directory, and the steps of its callback."""
    workdir, steps = tmp_path_factory.mktemp("own") / "run", []
    state = train(experiment(train=EXAMPLES, test=EXAMPLES[:16]), workdir, callbacks=[recorder(steps)])
    return jax.device_get(state), workdir, steps


def test_a_run_of_own_objects_resumes_with_the_bits_of_a_whole_run(whole, tmp_path):
    state, workdir, steps = whole
    found = []
    for num_steps in (40, 60):
        own = experiment(num_steps, train=EXAMPLES, test=EXAMPLES[:16])
        last = train(own, tmp_path / "run", callbacks=[recorder(found)])
    assert_equal(last, state)
    assert found == steps == [20, 40, 60]
    for name in ("noted", "test_loss"):
        assert lines(tmp_path / "run", name) == lines(workdir, name) == [20, 40, 60]


def test_a_run_of_muon_resumes_with_the_bits_of_a_whole_run(tmp_path):
    optimizer = muon(optax.constant_schedule(1e-2))
    whole = train(experiment(30, optimizer=optimizer), tmp_path / "whole")
    for num_steps in (20, 30):
        state = train(experiment(num_steps, optimizer=optimizer), tmp_path / "halves")
    assert_equal(state, whole)


def test_conditions_reach_the_network_and_weights_the_objective(whole, tmp_path):
    """Other conditions and other weights give other parameters; equal ones give equal parameters."""
    state = whole[0]
    for name in ("condition", "weight"):
        changed = [example | {name: np.float32(0.3)} for example in EXAMPLES]
        other = train(experiment(train=changed), tmp_path / name)
        assert np.abs(other.params["Dense_0"]["kernel"] - state.params["Dense_0"]["kernel"]).max() > 1e-4
    same = train(experiment(train=EXAMPLES), tmp_path / "same")
    assert_equal(same.params, state.params)


def test_a_score_is_bound_to_its_condition(whole):
    model, variables = restore(whole[1], model=Plane())
    x = jnp.ones(2)
    for condition in (None, jnp.float32(1.0)):
        batch = () if condition is None else (condition[None],)
        expected = model.apply(variables, x[None], jnp.ones(1), *batch)[0]
        np.testing.assert_allclose(as_score_fn(model, variables, condition)(x, 1.0), expected, rtol=1e-6)
    pull = jnp.abs(
        as_score_fn(model, variables, jnp.float32(1.0))(x, 1.0) - as_score_fn(model, variables)(x, 1.0)
    )
    assert pull.max() > 1e-3


def test_without_test_examples_there_is_no_held_out_loss(tmp_path):
    train(experiment(20), tmp_path)
    assert lines(tmp_path, "test_loss") == []
    assert lines(tmp_path, "loss") == [10, 20]


def test_batches_of_an_iterator_start_at_the_first_step(tmp_path):
    called = []

    def batches(first_step):
        called.append(first_step)
        for step in range(first_step, 1000):
            yield POINTS[np.random.default_rng(step).integers(0, 96, 8)]

    whole = train(experiment(batches=batches), tmp_path / "whole")
    assert called == [0, 0]  # the first for the shape of an example
    train(experiment(40, batches=batches), tmp_path / "run")
    assert_equal(train(experiment(batches=batches), tmp_path / "run"), whole)
    assert called == [0, 0, 0, 0, 0, 40]


def test_preprocessing_and_augmentation_of_training_examples_alone(tmp_path):
    """The training set is all zeros after preprocessing; augmentation then hides what the test set shows."""

    def augment(key, x):
        return 0 * x

    def preprocess(key, x):
        return x.astype(jnp.float32) / 10

    counts = np.arange(192, dtype=np.int32).reshape(96, 2)
    objects = dict(preprocess=preprocess, augment=augment)
    one = train(experiment(20, train=counts, test=counts, **objects), tmp_path / "one")
    other = train(experiment(20, train=counts[::-1], test=counts, **objects), tmp_path / "other")
    assert_equal(one.params, other.params)
    found = [json.loads(line) for line in (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()]
    losses = {name: line[name] for line in found for name in ("loss", "test_loss") if name in line}
    assert losses["test_loss"] > 1.5 * losses["loss"]


def test_an_error_of_a_callback_ends_the_run_and_leaves_its_checkpoint(whole, tmp_path):
    def fail(step, state, log):
        if step == 40:
            raise RuntimeError("mine")

    own = experiment(train=EXAMPLES, test=EXAMPLES[:16])
    with pytest.raises(RuntimeError, match="mine"):
        train(own, tmp_path, callbacks=[(20, fail)])
    restore(tmp_path, step=20, model=Plane())
    assert_equal(train(own, tmp_path), whole[0])


def test_restore_needs_the_network_and_refuses_another_one(whole):
    _, workdir, _ = whole
    model, variables = restore(workdir, model=Plane())
    assert model == Plane()
    assert_equal(variables["params"], whole[0].ema_params)
    with pytest.raises(UserError, match=r"Python code made: pass its network, restore\(workdir, model"):
        restore(workdir)


def test_restore_compares_the_network_with_the_checkpoint(tmp_path):
    train(experiment(20), tmp_path)
    with pytest.raises(UserError, match="model=Plane has 4 arrays, and the checkpoint 4, or of other shapes"):
        restore(tmp_path, model=Plane(width=9))


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ({"identity": {"network": "Plane", "optimizer": "adam"}}, "identity.optimizer='lion', not 'adam'"),
        ({"settings": {"batch_size": 16}}, "settings.batch_size=8, not 16"),
        ({"settings": {"seed": 1}}, "settings.seed=0, not 1"),
        ({"settings": {"ema_rate": 0.5}}, r"settings.ema_rate=0\.9, not 0\.5"),
        ({"train": EXAMPLES[::-1]}, "was trained on .*, but the data are"),
        ({"model": Plane(width=9)}, "holds arrays that don't fit"),
        ({"settings": {"num_steps": 30}}, "num_steps=30: .* is trained to step 60; use a larger number"),
    ],
)
def test_another_experiment_is_refused_and_changes_no_file(whole, objects, message):
    _, workdir, _ = whole
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=message):
        train(experiment(**{"train": EXAMPLES, "test": EXAMPLES[:16]} | objects), workdir)
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


def test_intervals_may_change_on_a_resume(whole, tmp_path, caplog):
    own = dict(train=EXAMPLES, test=EXAMPLES[:16])
    train(experiment(40, **own), tmp_path)
    state = train(experiment(settings={"log_every": 5, "checkpoint_every": 30}, **own), tmp_path)
    assert_equal(state, whole[0])
    for change in ("checkpoint_every=30 (was 20)", "log_every=5 (was 10)", "num_steps=60 (was 40)"):
        assert f"settings.{change}" in caplog.text


def test_a_config_and_python_code_refuse_each_others_runs(whole, tiny_config, tmp_path):
    from ncsn_jax.training import train_and_evaluate

    with pytest.raises(UserError, match="a run of Python code, and this is a config"):
        train_and_evaluate(tiny_config, whole[1])
    short = tiny_config.training.model_copy(update={"num_steps": 1, "preview_samples": 1})
    train_and_evaluate(tiny_config.model_copy(update={"training": short}), tmp_path)
    with pytest.raises(UserError, match="a run of a config, and this is Python code"):
        train(experiment(), tmp_path)


@pytest.mark.parametrize(
    ("objects", "error", "message"),
    [
        ({"train": None}, ValueError, "needs either train or batches, found neither"),
        ({"train": POINTS, "batches": iter}, ValueError, "needs either train or batches, found both"),
        ({"settings": {"batch_size": 6}}, UserError, "batch_size=6 is not divisible by 4 devices"),
        (
            {"settings": {"batch_size": 100}},
            UserError,
            "batch_size=100 is more than the 96 training",
        ),
        (
            {"train": POINTS.astype(np.int64)},
            UserError,
            "the examples have the type int.*; accepted: a",
        ),
        ({"train": POINTS[:, None, :1]}, UserError, r"model=Plane can't take examples of the shape \(1, 1\)"),
        ({"test": POINTS[:0]}, UserError, "test has no examples"),
        (
            {"batches": lambda step: iter([POINTS[:5]] * 100)},
            UserError,
            "batches: found 5 examples in a batch; accepted: 8 a process",
        ),
    ],
)
def test_invalid_experiments_are_refused_in_one_line_before_the_first_file(objects, error, message, tmp_path):
    with pytest.raises(error, match=message) as found:
        train(experiment(20, **objects), tmp_path / "run")
    assert "\n" not in str(found.value)
    assert not (tmp_path / "run" / "checkpoints").exists() or not any(
        (tmp_path / "run" / "checkpoints").iterdir()
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "num_steps: this setting is required"),
        ({"num_steps": 0}, "num_steps=0: input should be greater than 0"),
        ({"num_steps": 1, "steps": 2, "seed": -1}, "seed=-1: .*; steps=2: extra inputs are not permitted"),
    ],
)
def test_invalid_settings_are_refused_in_one_line(values, message):
    with pytest.raises(ValueError, match=message) as error:
        Settings(**values)
    assert "\n" not in str(error.value)


def start(workdir, *cluster):
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.own_run", str(workdir), *map(str, cluster)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.mark.slow
def test_a_killed_run_of_own_objects_ends_with_the_bits_of_a_whole_run(tmp_path):
    _, errors = start(tmp_path / "whole").communicate(timeout=300)
    killed = start(tmp_path / "killed")
    while not list((tmp_path / "killed").glob("checkpoints/20/record")):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    again = start(tmp_path / "killed")
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    whole, found = (restore(tmp_path / name, model=Plane(), ema=False)[1] for name in ("whole", "killed"))
    assert_equal(found, whole)
    assert lines(tmp_path / "killed", "norm") == [20, 40, 60]


@pytest.mark.slow
def test_two_processes_train_own_objects_together(whole, tmp_path):
    port = _unused_port()
    both = [start(tmp_path / "run", 2, number, port) for number in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    found = restore(tmp_path / "run", model=Plane(), ema=False)[1]["params"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, whole[0].params)
    assert lines(tmp_path / "run", "norm") == [20, 40, 60]
