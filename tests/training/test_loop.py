"""Whole runs of the tiny config: their files, how they resume, and how they stop."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from flax import linen as nn
from PIL import Image

from ncsn_jax import training
from ncsn_jax.app.build import build, described, load_dataset, network
from ncsn_jax.app.overridable import overridable
from ncsn_jax.data import training_batches
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.training import callbacks, loop, parallel
from ncsn_jax.training.checkpoints import steps_in
from ncsn_jax.training.workdir import check


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def checkpoint_steps(workdir):
    return steps_in(epath.Path(workdir / "checkpoints"))


def files(workdir):
    """Every file below a directory with its bytes."""
    return {p.relative_to(workdir): p.read_bytes() for p in workdir.rglob("*") if p.is_file()}


def changed(config, **training):
    return config.model_copy(update={"training": config.training.model_copy(update=training)})


@pytest.fixture(scope="module")
def traces():
    """How often each function was traced in the uninterrupted run: a count of its compilations."""
    return {"training": 0, "update": 0, "evaluation": 0}


@pytest.fixture(scope="module")
def uninterrupted(tiny_config, tmp_path_factory, traces):
    """The last state of a run, and its directory."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        for kind, module, name in (
            ("training", parallel, "loss_and_gradient"),
            ("update", parallel, "update"),
            ("evaluation", callbacks, "evaluation_step"),
        ):
            original = getattr(module, name)

            def counted(*args, kind=kind, original=original, **kwargs):
                traces[kind] += 1
                return original(*args, **kwargs)

            patch.setattr(module, name, counted)
        state = training.train_and_evaluate(tiny_config, workdir)
    return jax.device_get(state), workdir


class StoppedError(Exception):
    """Ends a run between two steps; benchmarks/kills.py uses kill -9."""


def test_each_function_compiles_once_in_a_run(uninterrupted, traces):
    assert traces == {"training": 1, "update": 1, "evaluation": 1}


def test_a_run_writes_its_config_checkpoints_curves_and_pictures(uninterrupted, tiny_config):
    _, workdir = uninterrupted
    assert json.loads((workdir / "config.json").read_text()) == tiny_config.model_dump(mode="json")
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["30", "40"]
    assert [p.name for p in (workdir / "tensorboard").iterdir()]
    for step in (20, 40):
        with Image.open(workdir / "samples" / f"step_{step:08d}.png") as image:
            assert image.size[0] > 300


def test_metrics_file_holds_losses_and_speed(uninterrupted):
    _, workdir = uninterrupted
    written = lines(workdir)
    assert [line["step"] for line in written if "loss" in line] == [10, 20, 30, 40]
    assert [line["step"] for line in written if "test_loss" in line] == [20, 40]
    for line in written:
        assert np.isfinite(list(line.values())).all()
    assert all(line["examples_per_second"] > 0 for line in written if "loss" in line)


@pytest.mark.parametrize("last_step", [20, 27])
def test_an_interrupted_run_ends_bit_for_bit_equal_to_a_whole_one(
    uninterrupted, tiny_config, tmp_path, monkeypatch, last_step
):
    whole, whole_workdir = uninterrupted
    original = loop.StepLog.add

    def add(self, step, values):
        original(self, step, values)
        if step == last_step + 1:
            raise StoppedError

    monkeypatch.setattr(loop.StepLog, "add", add)
    with pytest.raises(StoppedError):
        training.train_and_evaluate(tiny_config, tmp_path / "run")
    monkeypatch.undo()
    state = training.train_and_evaluate(tiny_config, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), whole)

    def losses(workdir):
        return [(line["step"], line["loss"]) for line in lines(workdir) if "loss" in line]

    assert losses(tmp_path / "run") == losses(whole_workdir)


def test_a_run_does_not_depend_on_jax_precision_and_random_settings(uninterrupted, tiny_config, tmp_path):
    """With a `ConfigDict`, in a process set to double precision and other random numbers."""
    with jax.enable_x64(True), jax.threefry_partitionable(False), jax.numpy_dtype_promotion("strict"):
        state = training.train_and_evaluate(overridable(tiny_config), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), uninterrupted[0])


def test_a_finished_run_can_be_extended(uninterrupted, tiny_config, tmp_path):
    whole, _ = uninterrupted
    training.train_and_evaluate(changed(tiny_config, num_steps=20), tmp_path / "run")
    state = training.train_and_evaluate(tiny_config, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), whole)


def test_restarting_a_finished_run_trains_no_further(uninterrupted, tiny_config):
    whole, workdir = uninterrupted
    before = lines(workdir)
    state = training.train_and_evaluate(tiny_config, workdir)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), whole)
    assert lines(workdir) == before


def test_restore_returns_the_average_or_the_parameters_of_a_step(uninterrupted, tiny_config):
    whole, workdir = uninterrupted
    model, variables = training.restore(workdir)
    assert model == network(tiny_config)
    jax.tree.map(np.testing.assert_array_equal, variables, {"params": whole.ema_params})
    _, variables = training.restore(workdir, ema=False)
    jax.tree.map(np.testing.assert_array_equal, variables, {"params": whole.params})
    _, earlier = training.restore(workdir, step=30)
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (earlier, variables)), strict=True))


def test_restoring_a_missing_step_names_the_available_steps(uninterrupted):
    with pytest.raises(UserError, match=r"no checkpoint of step 7; accepted: \[30, 40\]"):
        training.restore(uninterrupted[1], step=7)


@pytest.fixture(scope="module")
def not_finite(tiny_config):
    """Makes an experiment in which the losses of some steps are infinite: those whose batches are zero."""
    dataset = load_dataset(tiny_config)

    def at(*steps, **settings):
        whole = build(changed(tiny_config, **settings), dataset)

        def objective(key, score_fn, x):
            return whole.objective(key, score_fn, x) / (jnp.abs(x).max() > 0)

        def batches(first_step):
            stored = training_batches(dataset.train, batch_size=8, seed=3, first_step=first_step)
            for step, batch in enumerate(stored, start=first_step + 1):
                yield batch["examples"].reshape(8, 2) * (step not in steps)

        return dataclasses.replace(whole, train=None, batches=batches, objective=objective)

    return at


def test_a_non_finite_loss_stops_the_run_again_at_every_restart(tmp_path, not_finite):
    for _ in range(2):
        with pytest.raises(UserError, match=r"the loss of step 16 is inf.*: stopped"):
            training.train(not_finite(16), tmp_path / "run")
        assert checkpoint_steps(tmp_path / "run") == [10]
        assert [line for line in lines(tmp_path / "run") if "skipped_steps" in line] == [
            {"step": 16, "skipped_steps": 1.0}
        ]
    _, variables = training.restore(tmp_path / "run")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))
    # The step can be skipped on the next start.
    allowed = not_finite(16, max_skipped_steps=1)
    assert int(training.train(allowed, tmp_path / "run").step) == 40


def test_one_experiment_trains_in_two_directories_alike(tmp_path, not_finite):
    """Its batches begin anew, though the first of them was read for its shape."""
    experiment = not_finite(num_steps=10)
    first, second = (training.train(experiment, tmp_path / name) for name in ("first", "second"))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_skipped_step_changes_only_the_count_of_skipped_steps(tmp_path, not_finite, caplog):
    """The last step is skipped: the state is the one before it."""
    state = training.train(not_finite(40, max_skipped_steps=2), tmp_path / "run")
    assert int(state.num_skipped) == 1
    assert "the loss of step 40 is inf" in caplog.text
    assert ": step skipped, 1 of at most 2" in caplog.text
    assert {"step": 40, "skipped_steps": 1.0} in lines(tmp_path / "run")
    before = training.train(not_finite(num_steps=39), tmp_path / "before")
    for name in ("params", "opt_state", "ema_params"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, name), getattr(before, name))


def test_skipped_steps_are_counted_across_restarts(tmp_path, not_finite):
    for _ in range(2):
        with pytest.raises(UserError, match="the loss of step 27 is inf"):
            training.train(not_finite(5, 16, 27, max_skipped_steps=2), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 12}, r"training\.batch_size=8, not 12"),
        ({"learning_rate": 1e-2, "power": 1.0}, r"power=2\.0, not 1\.0.*learning_rate=0\.001, not 0\.01"),
        ({"schedule": "cosine", "num_steps": 50}, r"num_steps=40, not 50"),
    ],
)
def test_resuming_with_another_config_is_refused_and_changes_no_file(
    uninterrupted, tiny_config, change, message
):
    _, workdir = uninterrupted
    before = files(workdir)
    with pytest.raises(UserError, match=message):
        training.train_and_evaluate(changed(tiny_config, **change), workdir)
    assert files(workdir) == before


def test_shortening_a_run_is_refused_and_changes_no_file(uninterrupted, tiny_config):
    _, workdir = uninterrupted
    message = (
        rf"^config\.training\.num_steps=30: {re.escape(str(workdir))} is trained to step 40; use a larger"
    )
    before = files(workdir)
    with pytest.raises(UserError, match=message):
        training.train_and_evaluate(changed(tiny_config, num_steps=30), workdir)
    assert files(workdir) == before


def test_a_run_killed_before_its_second_checkpoint_has_the_first_one(tiny_config, tmp_path, monkeypatch):
    """A restart takes a line of the second checkpoint's step as a sign that checkpoints were lost."""
    waited = []
    original = loop.Checkpoints.wait

    def wait(checkpoints):
        waited.append(lines(tmp_path / "run")[-1]["step"])
        original(checkpoints)

    monkeypatch.setattr(loop.Checkpoints, "wait", wait)
    training.train_and_evaluate(changed(tiny_config, num_steps=20), tmp_path / "run")
    assert waited == [10, 20]


def test_a_run_killed_while_writing_its_config_can_be_restarted(tiny_config, tmp_path):
    (tmp_path / "config.json.partial").write_text("{")
    check(tmp_path, tiny_config.training, described(tiny_config))


def test_an_impossible_sampler_is_refused_before_the_first_step(tiny_config, tmp_path):
    sampler = tiny_config.sampling.model_copy(update={"method": "consistent", "eta": 0.01})
    with pytest.raises(UserError, match=r"method='consistent': eta=0\.01"):
        training.train_and_evaluate(tiny_config.model_copy(update={"sampling": sampler}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_size_not_divisible_by_the_devices_is_refused(tiny_config, tmp_path):
    with pytest.raises(
        UserError, match=r"^config\.training\.batch_size=6 is not divisible by 4 devices; use a multiple of 4"
    ):
        training.train_and_evaluate(changed(tiny_config, batch_size=6), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_batch_larger_than_the_dataset_is_refused(tiny_config, tmp_path):
    with pytest.raises(
        UserError, match=r"^config\.training\.batch_size=50004 is more than the 50000 training examples"
    ):
        training.train_and_evaluate(changed(tiny_config, batch_size=50_004), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_training_refuses_a_directory_of_other_files(tiny_config, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="not empty and holds no run"):
        training.train_and_evaluate(tiny_config, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


class CountedSteps(nn.Module):
    """A network of one parameter, which is its score."""

    @nn.compact
    def __call__(self, x, sigma):
        return x * 0 + self.param("steps", nn.initializers.zeros, ())


def test_keep_best_keeps_the_best_checkpoints_and_the_newest(tmp_path):
    """Held-out losses are given: the least is of step 20, the second of step 10; the newest is 40's."""
    losses = {5: 9.0, 10: 2.0, 15: 8.0, 20: 1.0, 25: 7.0, 30: 6.0, 35: 5.0, 40: 4.0}
    table = jnp.zeros(41).at[jnp.array([*losses])].set(jnp.array([*losses.values()]))

    def add_one(gradient, state, params):
        return jax.tree.map(jnp.ones_like, params), state

    experiment = training.Experiment(
        model=CountedSteps(),
        objective=lambda key, score_fn, x: table[score_fn(x, 1.0)[0].astype(int)],
        optimizer=optax.GradientTransformation(lambda params: optax.EmptyState(), add_one),
        train=np.ones((8, 1), np.float32),
        test=np.ones((12, 1), np.float32),
        settings=training.Settings(
            num_steps=40, batch_size=8, checkpoint_every=5, eval_every=40, keep_checkpoints=1, keep_best=2
        ),
        identity="given losses",
    )
    training.train(experiment, tmp_path / "run")
    assert {
        line["step"]: line["test_loss"] for line in lines(tmp_path / "run") if "test_loss" in line
    } == losses
    assert checkpoint_steps(tmp_path / "run") == [10, 20, 40]
    _, variables = training.restore(tmp_path / "run", step=20, model=CountedSteps())
    assert variables == {"params": {"steps": 20.0}}


def test_without_keep_best_only_the_newest_checkpoints_are_kept(uninterrupted, tiny_config):
    assert checkpoint_steps(uninterrupted[1]) == [30, 40]
