"""Damage to checkpoints, and saves that fail."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from etils import epath

from ncsn_jax import data, training
from ncsn_jax.app.build import build, described, load_dataset
from ncsn_jax.app.config import MlpModel
from ncsn_jax.runtime.errors import PreemptedError, UserError
from ncsn_jax.training import retrying_saver, variables
from ncsn_jax.training.checkpoints import Checkpoints, DamagedError
from ncsn_jax.training.manifest import run_facts
from ncsn_jax.training.parallel import replicate
from ncsn_jax.training.resume import restored
from ncsn_jax.training.state import TrainState
from ncsn_jax.training.workdir import check


@pytest.fixture(scope="module")
def tiny_config(tiny_config):
    """With arrays of some kilobytes: Orbax writes smaller ones into the index of its files."""
    return tiny_config.model_copy(update={"model": MlpModel(num_features=64, num_layers=2, num_scales=3)})


@pytest.fixture(scope="module")
def trained(tiny_config, tmp_path_factory):
    """A run with checkpoints of steps 30 and 40, and their parameters."""
    workdir = tmp_path_factory.mktemp("checkpoints") / "run"
    training.train_and_evaluate(tiny_config, workdir)
    return workdir, {step: training.restore(workdir, step=step, ema=False)[1] for step in (30, 40)}


@pytest.fixture(scope="module")
def dataset(tiny_config):
    return load_dataset(tiny_config)


@pytest.fixture(scope="module")
def resumed(tiny_config, dataset):
    """Looks for the state from which the run resumes, given the directory of its checkpoints."""
    experiment = build(tiny_config, dataset)
    content, inputs = experiment.described.content, [2]
    facts = run_facts(content, data.fingerprint(dataset.train, dataset.test), inputs)

    def of(directory):
        return restored(epath.Path(directory), experiment.abstract_state(), experiment.described, facts)

    return of


def files(directory: Path) -> dict[Path, bytes]:
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def truncated(path: Path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path):
    path.write_bytes(b"")


def deleted(path: Path):
    path.unlink()


def flipped(path: Path):
    """The middle byte, one bit of it."""
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def is_equal(tree, other):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, tree, other)))


SLOW = [pytest.param(damage, marks=pytest.mark.slow) for damage in (emptied, truncated, deleted)]


@pytest.mark.parametrize("damage", [flipped, *SLOW])
def test_a_damaged_checkpoint_is_never_used_and_never_deleted(trained, resumed, tmp_path, damage):
    """For each file of the newest checkpoint: its values are right, or the checkpoint before it is used.

    Restoring reads only the parameters; they may be sound in a checkpoint that training can't resume from.
    """
    original, params = trained
    names = sorted(files(original / "checkpoints" / "40"))
    assert len(names) >= 10
    fell_back, restored_older = [], []
    for name in names:
        workdir = tmp_path / str(len(fell_back)) / name.name
        shutil.copytree(original, workdir)
        directory = workdir / "checkpoints"
        damage(directory / "40" / name)
        damaged = files(directory)
        _, found = training.restore(workdir, ema=False)
        assert files(directory) == damaged, name  # sampling renames nothing
        found_state = resumed(directory)
        assert files(directory) == damaged, name  # looking for the state to resume from renames nothing
        state, step = found_state.state, int(found_state.state.step)
        with Checkpoints(directory, keep=2) as checkpoints:
            checkpoints.set_aside(list(found_state.damaged))
            assert checkpoints.steps == ([30, 40] if step == 40 else [30]), name
        if not is_equal(found, params[40]):
            assert step == 30, name
            jax.tree.map(np.testing.assert_array_equal, found, params[30])
            restored_older.append(name)
        jax.tree.map(np.testing.assert_array_equal, {"params": state.params}, params[step])
        if step == 30:
            fell_back.append(name)
            assert {p.name for p in directory.iterdir()} == {"30", "40.damaged-1"}, name
            damaged = {
                Path("40.damaged-1", *p.parts[1:]) if p.parts[0] == "40" else p: content
                for p, content in damaged.items()
            }
        assert files(directory) == damaged, name
        shutil.rmtree(workdir)
    for used_older in (fell_back, restored_older):
        assert any(name.parts[0] == "record" for name in used_older)
        # Half of a file, or a bit of it, may hold other arrays than the parameters.
        if used_older is fell_back or damage in (emptied, deleted):
            assert any(name.parts[:2] == ("state", "ocdbt.process_0") for name in used_older)


def test_training_resumes_from_the_newest_sound_checkpoint_to_the_same_end(
    trained, tiny_config, tmp_path, caplog
):
    original, params = trained
    shutil.copytree(original, tmp_path / "run")
    directory = tmp_path / "run" / "checkpoints"
    shutil.copytree(directory / "40", directory / "40.damaged-1")  # from earlier damage
    for array in (directory / "40").rglob("ocdbt.process_0/d/*"):
        emptied(array)
    state = training.train_and_evaluate(tiny_config, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, {"params": state.params}, params[40])
    assert {p.name for p in directory.iterdir()} == {"30", "40", "40.damaged-1", "40.damaged-2"}
    assert "40 is damaged (its arrays can't be read" in caplog.text
    assert "; renamed to 40.damaged-2" in caplog.text
    assert "resumes from step 30" in caplog.text


def test_a_readable_array_with_wrong_values_counts_as_damage(trained, resumed):
    workdir, _ = trained
    like = resumed(workdir / "checkpoints").state
    with Checkpoints(workdir / "checkpoints", keep=2) as checkpoints:
        record = checkpoints.read_record(30)
        with pytest.raises(DamagedError, match=r"^the array \.step doesn't match its checksum$"):
            checkpoints.restore(40, like, record)
    first = r"^the array \.params\['Dense_0'\]\['bias'\] doesn't match its checksum$"
    on_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with Checkpoints(workdir / "checkpoints") as checkpoints, pytest.raises(DamagedError, match=first):
        checkpoints.restore_part(40, "params", record, on_device)


def test_nothing_is_changed_when_every_checkpoint_is_damaged(trained, tiny_config, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    for step in ("30", "40"):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / step / "state")
    before = files(tmp_path)
    for go_on in (
        lambda: training.train_and_evaluate(tiny_config, tmp_path / "run"),
        lambda: training.restore(tmp_path / "run"),
    ):
        with pytest.raises(UserError, match=r"no checkpoint is intact \(40: .*; 30: .*\): restore one"):
            go_on()
    with pytest.raises(UserError, match="30 is damaged: "):
        training.restore(tmp_path / "run", step=30)
    assert {k: v for k, v in files(tmp_path).items() if k.name != "lock"} == {
        k: v for k, v in before.items() if k.name != "lock"
    }


def test_a_damaged_older_checkpoint_does_not_stop_training(trained, tiny_config, tmp_path):
    """Not even with keep_best, which reads all records."""
    shutil.copytree(trained[0], tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "30" / "record" / "metadata").write_bytes(b"")
    longer = tiny_config.training.model_copy(update={"num_steps": 50, "keep_best": 1, "keep_checkpoints": 3})
    state = training.train_and_evaluate(tiny_config.model_copy(update={"training": longer}), tmp_path / "run")
    assert int(state.step) == 50


def fewer(dataset):
    """The dataset with fewer training examples."""
    return dataclasses.replace(dataset, train=dataset.train[:1000])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"seed": 4}, "holds a run with seed=3, not 4"), ({}, "was trained on .*'examples': 50000")],
)
def test_a_checkpoint_of_another_run_is_refused(trained, tiny_config, dataset, tmp_path, change, message):
    """A checkpoint records its own config, seed and data, whatever config.json is next to it."""
    shutil.copytree(trained[0] / "checkpoints", tmp_path / "run" / "checkpoints")
    before = files(tmp_path / "run" / "checkpoints")
    config = tiny_config.model_copy(update=change)
    with pytest.raises(UserError, match=message):
        training.train(build(config, dataset if change else fewer(dataset)), tmp_path / "run")
    assert files(tmp_path / "run" / "checkpoints") == before
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("reason", ["data", "metrics", "curves", "precision"])
def test_a_refused_resume_changes_no_file_of_the_run(trained, tiny_config, dataset, tmp_path, reason):
    """Nothing is written before everything is checked, including settings that may change."""
    workdir = tmp_path / "run"
    shutil.copytree(trained[0], workdir)
    if reason == "metrics":
        (workdir / "metrics.jsonl").write_text("precious\n")
    if reason == "curves":
        shutil.rmtree(workdir / "tensorboard")
        (workdir / "tensorboard").write_text("precious")
    before = files(workdir)
    often = tiny_config.training.model_copy(update={"log_every": 5, "num_steps": 50})
    config = tiny_config.model_copy(update={"training": often})
    experiment = build(config, fewer(dataset) if reason == "data" else dataset)
    message = {
        "data": "was trained on .*'examples': 50000",
        "metrics": "metrics.jsonl is not this program's",
        "curves": "tensorboard is not a directory: move it away",
        "precision": "trained with jax_default_matmul_precision=None, found 'highest': set JAX_DEFAULT_M",
    }[reason]
    with (
        jax.default_matmul_precision("highest" if reason == "precision" else None),
        pytest.raises(UserError, match=message),
    ):
        training.train(experiment, workdir)
    assert {k: v for k, v in files(workdir).items() if k.name != "lock"} == {
        k: v for k, v in before.items() if k.name != "lock"
    }


def test_restoring_a_step_that_is_not_an_int_is_refused(trained, unchecked):
    directory = epath.Path(trained[0] / "checkpoints")
    with pytest.raises(UserError, match=r"^step='30': accepted: an int, one of \[30, 40\]$"):
        unchecked(variables).restored_variables(directory, step="30")


def test_a_run_resumes_from_its_checkpoint_dir_when_the_workdir_is_lost(trained, tiny_config, tmp_path):
    """As on a new machine, with checkpoints in a bucket."""
    shutil.copytree(trained[0] / "checkpoints", tmp_path / "bucket")
    elsewhere = tiny_config.training.model_copy(update={"checkpoint_dir": str(tmp_path / "bucket")})
    config = tiny_config.model_copy(update={"training": elsewhere})
    state = training.train_and_evaluate(config, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, {"params": state.params}, trained[1][40])
    assert not (tmp_path / "run" / "checkpoints").exists()
    training.restore(tmp_path / "run", step=30)


@pytest.fixture
def failing(monkeypatch):
    """Make some saves fail, as on a full disk; return the steps of all attempts."""
    asked = []
    original = Checkpoints.save

    def at(*attempts):
        def save(self, step, state, record):
            asked.append(step)
            if len(asked) in attempts:
                raise OSError(28, "No space left on device")
            original(self, step, state, record)

        monkeypatch.setattr(Checkpoints, "save", save)
        monkeypatch.setattr(
            retrying_saver, "time", SimpleNamespace(sleep=asked.append)
        )  # not other modules' time
        return asked

    return at


def test_a_failed_save_is_retried_at_the_next_log_line(trained, tiny_config, tmp_path, failing, caplog):
    asked = failing(2)
    often = tiny_config.training.model_copy(update={"log_every": 5})
    state = training.train_and_evaluate(tiny_config.model_copy(update={"training": often}), tmp_path / "run")
    assert asked == [10, 20, 25, 30, 40]
    assert "the state of step 20 can't be saved (No space left on device); training continues" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, {"params": state.params}, trained[1][40])


def test_too_many_failed_saves_end_the_run_and_keep_earlier_checkpoints(tiny_config, tmp_path, failing):
    asked = failing(2, 3, 4)
    few = tiny_config.training.model_copy(update={"max_failed_saves": 2})
    with pytest.raises(
        UserError, match=r"the state of step 40 .*No space left.*failure 3 in a row .*=2; .* step 10; fix"
    ):
        training.train_and_evaluate(tiny_config.model_copy(update={"training": few}), tmp_path / "run")
    assert asked == [10, 20, 30, 40]
    training.restore(tmp_path / "run", step=10)


def test_saving_the_last_state_is_retried_until_it_succeeds(trained, tiny_config, tmp_path, failing):
    asked = failing(4, 6)
    training.train_and_evaluate(tiny_config, tmp_path / "run")
    assert asked == [10, 20, 30, 40, 0.5, 40, 1.0, 40]
    _, found = training.restore(tmp_path / "run", ema=False)
    jax.tree.map(np.testing.assert_array_equal, found, trained[1][40])


def test_a_preempted_run_stops_retrying_its_last_save(tmp_path, failing):
    """SIGTERM must end a run whose disk never comes back."""
    asked = failing(*range(1, 50))
    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        saver = retrying_saver.Saver(checkpoints, 100, {}, lambda: None, lambda: True)
        state = TrainState(np.int32(7), {"a": np.zeros(2)}, (), {"a": np.zeros(2)}, np.int32(0))
        with pytest.raises(PreemptedError, match="preempted: the state of step 7 couldn't be saved in "):
            saver.finish(7, replicate(state))
    assert asked.count(7) == retrying_saver.FEW_RETRIES
    assert not (tmp_path / "checkpoints" / "7").exists()


def test_locks_of_a_refused_command_do_not_block_a_new_run(tiny_config, tmp_path):
    (tmp_path / "eval.lock").touch()
    (tmp_path / "lock").touch()
    check(tmp_path, tiny_config.training, described(tiny_config))
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty and holds no run"):
        check(tmp_path, tiny_config.training, described(tiny_config))
