"""Snapshots of a run's two averages, and averages of other lengths restored from them."""

import shutil

import flax.struct
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ncsn_jax.runtime.errors import UserError
from ncsn_jax.training import restore, train
from ncsn_jax.training.checkpoints import Checkpoints, DamagedCheckpointError, DamagedError
from ncsn_jax.training.manifest import make_record
from ncsn_jax.training.power_averages import Profile, exponent, synthesis
from tests import own_run

SETTINGS = {
    "ema_rate": 0.0,
    "ema_lengths": (0.05, 0.1),
    "ema_snapshot_every": 5,
    "keep_checkpoints": 1,
}
MODEL = own_run.Plane()


def run(workdir, num_steps=60, callbacks=(), **settings):
    experiment = own_run.experiment(num_steps, settings=SETTINGS | settings)
    return train(experiment, workdir, callbacks=callbacks)


def steps_of(directory):
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())


def equal(tree, other):
    return jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), tree, other))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 60 steps, its last state, and the parameters after each step."""
    workdir, path = tmp_path_factory.mktemp("snapshots") / "run", []
    recorder = (1, lambda step, state, log: path.append(jax.device_get(state.params)))
    return workdir, run(workdir, callbacks=[recorder]), path


def test_snapshots_outlive_the_checkpoints_and_hold_both_averages(whole):
    workdir, state, _ = whole
    place = workdir / "checkpoints"
    assert steps_of(place) == [60]
    assert steps_of(place / "averages") == list(range(5, 61, 5))
    assert equal(restore(workdir, model=MODEL)[1]["params"], state.ema_params)
    assert equal(restore(workdir, model=MODEL, ema_length=0.05)[1]["params"], state.ema_params)
    assert equal(restore(workdir, model=MODEL, ema_length=0.1)[1]["params"], state.second_ema_params)


def test_another_length_is_the_average_of_the_path_to_the_printed_residual(whole, caplog):
    workdir, _, path = whole
    length = 0.07
    found = restore(workdir, model=MODEL, ema_length=length)[1]["params"]
    stored = [Profile(t, own) for t in range(5, 61, 5) for own in (0.05, 0.1)]
    residual = synthesis(Profile(60, length), stored).residual
    assert f"ema_length={length} is made from 24 of 24 stored averages, with the residual {residual:.2%}" in (
        caplog.text
    )
    gamma = exponent(length)
    weights = np.diff(np.arange(61) ** (gamma + 1)) / 60 ** (gamma + 1)
    norm = (gamma + 1) / np.sqrt(60 * (2 * gamma + 1))
    assert 0 < residual < 0.01
    for leaf, *values in zip(jax.tree.leaves(found), *map(jax.tree.leaves, path), strict=True):
        values = np.stack(values)
        exact = np.tensordot(weights, values, 1)
        bound = residual * norm * np.sqrt(np.sum(np.square(values - exact), axis=0))
        assert np.all(np.abs(leaf - exact) <= bound + 1e-6 * np.abs(exact))
        assert np.any(np.abs(leaf - values[-1]) > bound)  # the control: the last parameters are farther


def test_a_resumed_run_has_the_same_snapshots_and_state(whole, tmp_path):
    workdir, state, _ = whole
    run(tmp_path / "run", 40)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "averages" / "40")  # as if killed before it was written
    assert equal(run(tmp_path / "run"), state)
    own, expected = (place / "checkpoints" / "averages" for place in (tmp_path / "run", workdir))
    assert steps_of(own) == steps_of(expected)
    with Checkpoints(own) as found, Checkpoints(expected) as of_whole:
        for step in found.steps:
            assert found.read_record(step)["leaves"] == of_whole.read_record(step)["leaves"]


def test_a_missing_snapshot_before_the_newest_is_made_again(tmp_path):
    run(tmp_path / "run", 40, checkpoint_every=20)
    place = tmp_path / "run" / "checkpoints"
    shutil.rmtree(place / "averages" / "40")
    shutil.copytree(place / "averages" / "35", place / "averages" / "55")  # of a checkpoint that is lost
    run(tmp_path / "run", 60)
    assert steps_of(place / "averages") == list(range(5, 61, 5))


@pytest.mark.parametrize("part", ["record", "state"])
def test_a_damaged_snapshot_is_left_out(whole, tmp_path, caplog, part):
    shutil.copytree(whole[0], tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints" / "averages" / "30" / part).rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    restore(tmp_path / "run", model=MODEL, ema_length=0.07)
    assert "averages/30 is damaged" in caplog.text
    assert "is made from 22 of 22 stored averages" in caplog.text


def test_a_checkpoint_whose_second_average_is_damaged_is_named(whole, monkeypatch):
    original = Checkpoints.restore_part

    def restore_part(self, step, name, *others):
        if name == "second_ema_params":
            raise DamagedError("it is torn")
        return original(self, step, name, *others)

    monkeypatch.setattr(Checkpoints, "restore_part", restore_part)
    with pytest.raises(DamagedCheckpointError, match=r"checkpoints/60 is damaged: it is torn"):
        restore(whole[0], model=MODEL, ema_length=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ema_length": 0.005}, r"ema_length=0\.005: out of reach of the 24 averages .* accepted: a length"),
        ({"ema_length": 0.3}, r"ema_length=0\.3: accepted: more than 0, at most 0\.2887"),
        ({"ema_length": 0.1, "ema": False}, r"ema=False, ema_length=0\.1: accepted: a length with ema=True"),
    ],
)
def test_lengths_out_of_reach_are_refused(whole, options, message):
    with pytest.raises(UserError, match=message):
        restore(whole[0], model=MODEL, **options)


def test_a_run_with_one_average_has_no_other_length(tmp_path):
    train(own_run.experiment(20), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints" / "averages").exists()
    with pytest.raises(UserError, match=r"ema_length=0\.1: .*/20 has no averages by power functions"):
        restore(tmp_path / "run", model=MODEL, ema_length=0.1)


def test_checkpoints_from_before_second_averages_still_load(tmp_path):
    class OldState(flax.struct.PyTreeNode):
        step: object
        params: object
        opt_state: object
        ema_params: object
        num_skipped: object

    experiment = own_run.experiment()
    state = experiment.initial_state()
    old = OldState(**{name: part for name, part in vars(state).items() if part is not None})
    record = make_record({"config": {}, "data": None}, 7, old)
    with ocp.CheckpointManager(tmp_path) as manager:
        items = {"state": ocp.args.StandardSave(old), "record": ocp.args.JsonSave(record)}
        manager.save(7, args=ocp.args.Composite(**items))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        experiment.abstract_state(),
    )
    with Checkpoints(tmp_path) as checkpoints:
        assert equal(checkpoints.restore(7, like, checkpoints.read_record(7)), state)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ema_lengths": (0.05,)}, r"ema_lengths=\(0\.05,\): accepted: none, or two different lengths"),
        ({"ema_lengths": (0.1, 0.1)}, "accepted: none, or two different lengths"),
        ({"ema_lengths": "0.05,long"}, r"ema_lengths: found '0\.05,long'; accepted: lengths between 0 and"),
        ({"ema_lengths": (0.05, 0.4)}, "accepted: lengths between 0 and 0.2887"),
        ({"ema_lengths": (0.05, 0.1), "ema_rate": 0.9}, r"replaces .* found ema_rate=0\.9"),
        ({"ema_lengths": (0.05, 0.1), "ema_warmup": True}, "ema_warmup=True; accepted: 0.0 and False"),
        ({"ema_snapshot_every": 5}, "ema_snapshot_every=5: found no ema_lengths"),
    ],
)
def test_settings_of_averages_that_contradict_each_other_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        own_run.Settings(num_steps=10, **values)
