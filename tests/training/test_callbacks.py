"""Callbacks of a run: their order, their scalars, and how a preempted run goes on with them."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from ncsn_jax import MLP, training
from ncsn_jax.runtime.errors import PreemptedError
from ncsn_jax.training import loop
from ncsn_jax.training.checkpoints import read_record


@pytest.fixture(scope="module")
def experiment():
    """Six steps on points, with the held-out loss every third and a checkpoint every second."""
    x = np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32)
    return training.Experiment(
        model=MLP(num_features=4, num_layers=1),
        objective=training.denoising_objective((1.0, 0.1)),
        optimizer=optax.sgd(1e-2),
        train=x,
        test=x[:12],
        settings=training.Settings(
            num_steps=6, batch_size=8, log_every=1, eval_every=3, eval_examples=8, checkpoint_every=2
        ),
        identity="callbacks",
    )


def lines(workdir, name):
    """The lines of the metrics with a value of a name."""
    written = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in written if name in line]


def test_callbacks_are_called_in_their_order_and_their_scalars_are_logged(experiment, tmp_path):
    """Scalars of any kind: of Python, numpy and jax."""
    called = []

    def callback(name, value):
        def run(step, state, log):
            assert int(state.step) == step
            assert log.workdir == tmp_path
            called.append((step, name))
            return {name: value}

        return run

    own = [(2, callback("first", np.float32(1.5))), (4, callback("second", jnp.ones(())))]
    training.train(experiment, tmp_path, callbacks=own)
    # Every fourth step, and the last.
    assert called == [(2, "first"), (4, "first"), (4, "second"), (6, "first"), (6, "second")]
    assert lines(tmp_path, "first") == [{"step": n, "first": 1.5} for n in (2, 4, 6)]
    assert lines(tmp_path, "second") == [{"step": n, "second": 1.0} for n in (4, 6)]
    assert [line["step"] for line in lines(tmp_path, "test_loss")] == [3, 6]


class Told:
    """A notice of preemption that a test gives, in place of a signal to its own process."""

    has_come_now = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def arm(self):
        pass

    def has_come(self):
        return Told.has_come_now

    def is_due(self, step):
        return Told.has_come_now

    def leaving_by(self, leave):
        return contextlib.nullcontext()


def test_the_callbacks_after_one_that_was_left_run_when_the_run_resumes(experiment, tmp_path, monkeypatch):
    """A process that is told to end leaves the callback, and saves how many of them have run."""
    called = []

    def first(step, state, log):
        called.append((step, "first"))

    def second(step, state, log):
        monkeypatch.setattr(Told, "has_come_now", step == 4 and len(called) == 3)
        log.leave_if_preempted()
        called.append((step, "second"))

    def third(step, state, log):
        called.append((step, "third"))

    own = [(2, first), (2, second), (4, third)]
    whole = training.train(experiment, tmp_path / "whole")
    monkeypatch.setattr(loop, "Notice", Told)
    with pytest.raises(PreemptedError, match="preempted: saved at step 4; rerun to resume"):
        training.train(experiment, tmp_path / "run", callbacks=own)
    assert called == [(2, "first"), (2, "second"), (4, "first")]
    _, record = read_record(epath.Path(tmp_path / "run" / "checkpoints"), 4)
    assert record["callbacks"] == 2  # the held-out loss, which wasn't due, and the first
    called.append("resumed")
    monkeypatch.setattr(Told, "has_come_now", False)
    state = training.train(experiment, tmp_path / "run", callbacks=own)
    assert called[4:] == [(4, "second"), (4, "third"), (6, "first"), (6, "second"), (6, "third")]
    jax.tree.map(np.testing.assert_array_equal, state, whole)
