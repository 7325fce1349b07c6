"""Objects of one's own in a config, by import paths: what works, what is printed, and what is refused."""

import json
import re
import sys

import jax
import numpy as np
import pytest

from ncsn_jax.app import cli
from ncsn_jax.app.build import load_dataset, network, optimizer
from ncsn_jax.app.config import Config, OwnModel, Training, parse
from ncsn_jax.data import Data
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.training import restore
from ncsn_jax.training.optimizers import decays
from tests.own_run import Plane

MODULE = """
import sys
import numpy as np, jax.numpy as jnp, optax
from tests.own_run import Plane, objective

print("IMPORTED", file=sys.stderr)
number = 3

def load(count=40, kind="float32"):
    x = np.arange(2 * count).reshape(count, 2) % 7
    if kind == "uint8":
        x = x[:, :, None, None].repeat(2, 2).astype("uint8")
    if kind == "dict":
        return [{"x": row.astype("float32"), "weight": np.float32(1.0)} for row in x], list(x)
    return x.astype(kind), x[:8].astype(kind)

def vector(key, score_fn, x):
    return x

def single(*arguments):
    return 3

def optimizer(learning_rate):
    return optax.sgd(learning_rate)

def broken(*arguments, **fields):
    raise ValueError("mine\\nis broken")
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module in the current directory that says when it is imported."""
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def settings(module, **groups):
    own = {
        "data": {"name": f"{module}:load"},
        "model": {"name": f"{module}:Plane", "fields": {"width": 4}, "sigma_begin": 1.0, "num_scales": 2},
        "training": {
            "num_steps": 2,
            "batch_size": 8,
            "objective": f"{module}:objective",
            "optimizer": f"{module}:optimizer",
            "preview_samples": 1,
        },
        "sampling": {"num_samples": 2, "batch_size": 4, "steps_per_scale": 1},
    }
    return parse({name: own.get(name, {}) | groups.get(name, {}) for name in own | groups})


def write_config(module, config):
    """A config file named by its path; it does not import the module itself."""
    with open("mine.py", "w") as file:
        file.write(
            "import json\n"
            "from ncsn_jax.app.overridable import overridable\n"
            "from ncsn_jax.app.config import parse\n"
            f"def get_config():\n    return overridable(parse(json.loads({config.model_dump_json()!r})))\n"
        )


def test_a_config_of_import_paths_trains_resumes_and_samples(module, tmp_path, capsys):
    config = settings(module)
    write_config(module, config)
    assert cli.main(["main.py", "--config=mine.py", "--workdir=run"]) == 0
    errors = capsys.readouterr().err
    # The announcement comes before the module runs.
    assert errors.index(f"main.py: imports {module}, named by mine.py") < errors.index("IMPORTED")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["fields"] == {"width": 4}
    sys.modules.pop(module)
    assert cli.main(["main.py", "--workdir=run", "--config.training.num_steps=3"]) == 0
    assert f"imports {module}, named by run/config.json" in capsys.readouterr().err
    assert cli.main(["main.py", "--mode=sample", "--workdir=run", "--out=more"]) == 0
    assert np.load(tmp_path / "run" / "samples" / "more" / "samples.npy").shape == (2, 2)
    assert cli.main(["main.py", "--mode=evaluate", "--workdir=run", "--num_samples=4"]) == 0
    assert cli.main(["main.py", "--mode=report", "--workdir=run"]) == 0


def test_restore_runs_nothing_that_a_hostile_run_names(module, tmp_path, capsys):
    write_config(module, settings(module))
    assert cli.main(["main.py", "--config=mine.py", "--workdir=run"]) == 0
    sys.modules.pop(module)
    (tmp_path / f"{module}.py").write_text(MODULE + "raise ValueError('mine\\nis hostile')")
    capsys.readouterr()
    with pytest.raises(UserError, match=f"network of '{module}:Plane', and restore imports nothing"):
        restore("run")
    model, _ = restore("run", model=Plane(width=4))
    assert model == Plane(width=4)
    assert module not in sys.modules
    assert cli.main(["main.py", "--mode=sample", "--workdir=run"]) == 1
    errors = capsys.readouterr().err
    assert errors.index(f"imports {module}, named by run/config.json") < errors.index("IMPORTED")
    assert re.search(r"main\.py: config\..*can't be imported \(ValueError: mine is hostile\)", errors)
    assert "Traceback" not in errors


def test_own_images_are_dequantized_and_own_numbers_are_not(module):
    images = load_dataset(settings(module, data={"fields": {"kind": "uint8"}, "transform": "rescale"}))
    assert (images.info.shape, images.info.num_values) == ((2, 2, 1), 256)
    assert images.info.dequantization == "uniform"
    points = load_dataset(settings(module, data={"fields": {"count": 12}}))
    assert (points.info.shape, points.info.num_values, len(points.train)) == ((2,), None, 12)
    dictionaries = load_dataset(settings(module, data={"fields": {"kind": "dict"}}))
    assert dictionaries.info.shape == (2,)


BAD = {
    "no module": ({"model": {"name": "nowhere_at_all:Net"}}, "name='nowhere_at_all:Net': can't be imported"),
    "no such name": ({"model": {"name": "MODULE:Net"}}, r"can't be imported \(AttributeError: "),
    "not callable": ({"model": {"name": "MODULE:number"}}, "found int; accepted: a function or a class"),
    "no network": ({"model": {"name": "MODULE:load", "fields": {}}}, "found tuple; accepted: a flax"),
    "a field that isn't": ({"model": {"fields": {"size": 1}}}, "TypeError: .*unexpected keyword"),
    "other examples": (
        {"data": {"fields": {"kind": "uint8"}}},
        "can't take the examples of config.data.name",
    ),
    "broken data": ({"data": {"name": "MODULE:broken"}}, r"data\.name=.*: ValueError: mine is broken"),
    "no pair": ({"data": {"name": "MODULE:single"}}, r"found int; accepted: a pair \(train, test\)"),
    "numbers and a flip": ({"data": {"random_flip": True}}, "random_flip=True: .* has no images of 8 bits"),
    "a folder's setting": ({"data": {"corrupt": "skip"}}, "corrupt='skip': .* is not a folder of images"),
    "an image size": ({"data": {"fields": {"kind": "uint8"}, "image_size": 4}}, "images of their final size"),
    "no objective": ({"training": {"objective": "MODULE:number"}}, "objective=.*: found int; accepted: a f"),
    "no optimizer": ({"training": {"optimizer": "MODULE:single"}}, "found int; accepted: a function that"),
    "a broken optimizer": ({"training": {"optimizer": "MODULE:broken"}}, "optimizer=.*: ValueError: mine is"),
}


@pytest.mark.parametrize("case", BAD)
def test_objects_that_cannot_be_used_are_refused_in_one_line(case, module, tmp_path, capsys):
    changes, message = BAD[case]
    text = json.dumps(settings(module, **changes).model_dump()).replace("MODULE", module)
    write_config(module, parse(json.loads(text)))
    assert cli.main(["main.py", "--config=mine.py", "--workdir=run"]) == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("main.py: config.")
    assert re.search(message, line), line
    assert not (tmp_path / "run").exists()


def test_an_objective_that_returns_no_scalar_is_refused_in_one_line(module, capsys):
    write_config(module, settings(module, training={"objective": f"{module}:vector"}))
    assert cli.main(["main.py", "--config=mine.py", "--workdir=run"]) == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert line == "main.py: config.training.objective: found a loss of the shape (2,); accepted: a scalar"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"name": "net"}}, r"config\.model=.*: its name must be 'ncsn', .* 'package\.module:name'"),
        ({"model": {"name": "a b:c"}}, r"config\.model\.name='a b:c': string should match pattern"),
        (
            {"training": {"objective": "huber"}},
            r"config\.training\.objective: found 'huber'; accepted: 'denois",
        ),
        (
            {"training": {"optimizer": "sgd"}},
            r"config\.training\.optimizer: found 'sgd'; accepted: 'adam', 'ad",
        ),
    ],
)
def test_words_that_are_neither_known_nor_import_paths_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        parse(change)


def test_arguments_for_a_dataset_of_this_package_are_refused():
    with pytest.raises(UserError, match=r"config\.data\.fields=\{'a': 1\}: 'two_moons' is a dataset of this"):
        load_dataset(Config(data=Data(name="two_moons", fields={"a": 1})))


def test_lists_in_fields_become_tuples_so_that_networks_hash():
    model = network(Config(model=OwnModel(name="tests.tiny:TinyScore", fields={"sigmas": [1.0, 0.5]})))
    assert model.sigmas == (1.0, 0.5)
    assert hash(model) == hash(model.copy())


def test_adamw_decays_weights_and_neither_biases_nor_scales_nor_embeddings():
    """With zero gradients, a step multiplies what decays by 1 − rate·decay, and changes nothing else."""
    params = {
        "conv": {"kernel": np.ones((3, 3, 1, 2), np.float32), "bias": np.ones(2, np.float32)},
        "norm": {"embedding": np.ones((4, 2), np.float32), "alpha": np.ones(2, np.float32)},
    }
    chosen = optimizer(Training(optimizer="adamw", weight_decay=0.1, learning_rate=0.01))
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = chosen.update(zeros, chosen.init(params), params)
    np.testing.assert_allclose(updates["conv"]["kernel"], -0.001, rtol=1e-6)
    for group, name in (("conv", "bias"), ("norm", "embedding"), ("norm", "alpha")):
        np.testing.assert_array_equal(updates[group][name], 0.0)
    assert decays(params)["conv"] == {"kernel": True, "bias": False}
