"""Conditions of examples: classes, columns and arrays, and what is refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ncsn_jax import data
from ncsn_jax.data import Data, drop_condition
from ncsn_jax.data.conditions import ONLY
from ncsn_jax.runtime.errors import ArgumentError, UserError

RNG = np.random.default_rng(0)
NAMES = ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png", "dog/3.png", "emu/1.png")


@pytest.fixture
def folder(tmp_path):
    """Images in a sub-directory for each class, whose grey value is their number, and a CSV about them."""
    rows = ["name,size,angle"]
    for number, name in enumerate(NAMES):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4), number).save(path)
        rows.append(f"{name},{number},{-0.5 * number}")
    (tmp_path / "columns.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return tmp_path


def of_folder(folder, **settings):
    return data.load(Data(name="folder", data_dir=str(folder), image_size=4, channels=1, **settings))


def examples(dataset):
    return [
        e for s in (dataset.train_examples, dataset.test_examples) for e in map(s.__getitem__, range(len(s)))
    ]


def test_digits_have_their_labels_and_batches_keep_examples_together(data_dir):
    plain = data.load(Data(name="digits", data_dir=data_dir))
    dataset = data.load(Data(name="digits", data_dir=data_dir, condition="class"))
    np.testing.assert_array_equal(dataset.train, plain.train)
    facts = dataset.train_conditions.facts[ONLY]
    assert (facts.kind, facts.size, facts.names) == ("class", 10, tuple("0123456789"))
    train, test = plain.load_labels()
    np.testing.assert_array_equal([dataset.train_conditions[i] for i in range(1500)], train)
    np.testing.assert_array_equal(dataset.classes()[1], test)
    batch = next(data.training_batches(dataset.train_examples, batch_size=8, seed=0))["examples"]
    alone = next(data.training_batches(plain.train, batch_size=8, seed=0))["examples"]
    np.testing.assert_array_equal(batch["x"], alone)  # the order doesn't depend on conditions
    of = {x.tobytes(): label for x, label in zip(plain.train, train, strict=True)}
    found = [of[x.tobytes()] for x in batch["x"].reshape(-1, 8, 8, 1)]
    np.testing.assert_array_equal(batch["condition"].ravel(), found)


def test_the_fingerprint_covers_the_conditions(data_dir):
    dataset = data.load(Data(name="digits", data_dir=data_dir, condition="class"))
    known = data.fingerprint(dataset.train_examples, None)
    assert known["shape"] == {"x": [8, 8, 1], "condition": []}
    stored = {ONLY: (dataset.train_conditions.stored[ONLY] + 1) % 10}
    other = data.Conditions(stored, dataset.train_conditions.facts)
    changed = data.fingerprint(data.ConditionalExamples(dataset.train, other), None)
    assert changed["train"]["sha256"] != known["train"]["sha256"]
    assert changed["train"]["examples"] == known["train"]["examples"] == 1500


def test_classes_of_a_folder_are_its_directories(folder):
    dataset = of_folder(folder, condition="class", test_fraction=0.3)
    facts = dataset.train_conditions.facts[ONLY]
    assert facts.names == ("cat", "dog", "emu")
    found = {int(e["x"][0, 0, 0]): facts.names[e["condition"]] for e in examples(dataset)}
    assert found == {number: name.partition("/")[0] for number, name in enumerate(NAMES)}
    assert [len(labels) for labels in dataset.load_labels()] == [len(dataset.train), len(dataset.test)]


def test_columns_of_a_folder_are_standardised_numbers(folder):
    dataset = of_folder(folder, condition="columns")
    facts = dataset.train_conditions.facts[ONLY]
    assert (facts.kind, facts.names) == ("vector", ("size", "angle"))
    for example in examples(dataset):
        number = float(example["x"][0, 0, 0])
        raw = example["condition"] * np.array(facts.scale) + np.array(facts.offset)
        np.testing.assert_allclose(raw, [number, -0.5 * number], atol=1e-6)
    train = np.stack([dataset.train_conditions[i] for i in range(len(dataset.train))])
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(train.std(0), 1, rtol=1e-6)


def test_a_folder_whose_classes_have_changed_is_refused(folder):
    recorded = dict(of_folder(folder, condition="class").train_conditions.facts)
    of_folder(folder, condition="class", conditions=recorded)
    (folder / "dog").rename(folder / "wolf")
    with pytest.raises(
        UserError, match=r"the classes have changed since training began \(dog, wolf\); accepted"
    ):
        of_folder(folder, condition="class", conditions=recorded)


def damage(folder, how):
    path = folder / "columns.csv"
    text = path.read_text(encoding="utf-8")
    changes = {
        "a row": lambda: re.sub(".*emu.*\n", "", text),
        "a number": lambda: text.replace("emu/1.png,5", "emu/1.png,five"),
        "columns": lambda: re.sub(",.*", "", text),
        "a varying column": lambda: re.sub(r"png,\d", "png,3", text),
        "a finite number": lambda: text.replace("-1.5", "nan"),
    }
    path.write_text(changes[how](), encoding="utf-8")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("a row", "found no row for emu/1.png"),
        ("a number", r"emu/1.png: found \['five', '-2.5'\]; accepted: 2 numbers"),
        ("columns", "found no column of numbers"),
        ("a varying column", "column size is constant, 3; leave it out"),
        ("a finite number", "column angle: example . is not a finite number"),
    ],
)
def test_a_csv_without_something_is_refused_in_one_line(folder, how, message):
    damage(folder, how)
    with pytest.raises(UserError, match=message) as error:
        of_folder(folder, condition="columns")
    assert "\n" not in str(error.value)


def test_a_recorded_column_that_is_missing_is_refused(folder):
    recorded = dict(of_folder(folder, condition="columns").train_conditions.facts)
    path = folder / "columns.csv"
    path.write_text(path.read_text().replace("angle", "turn"))
    with pytest.raises(UserError, match="column angle is missing; found size, turn"):
        of_folder(folder, condition="columns", conditions=recorded)


def test_folders_without_what_the_condition_needs_are_refused(folder):
    (folder / "columns.csv").unlink()
    with pytest.raises(UserError, match=r"columns\.csv: can't be read"):
        of_folder(folder, condition="columns")
    Image.new("L", (4, 4)).save(folder / "loose.png")
    with pytest.raises(UserError, match=r"loose.png: found an image outside of the classes"):
        of_folder(folder, condition="class")
    with pytest.raises(ValueError, match="found corrupt='skip'; accepted: 'error'"):
        Data(name="folder", condition="class", corrupt="skip")


@pytest.mark.parametrize(
    ("name", "condition", "accepted"),
    [
        ("digits", "attributes", "'none', 'class'"),
        ("celeb_a", "class", "'none', 'attributes'"),
        ("arrays", "class", "'none', 'file'"),
        ("two_moons", "class", "'none'"),
        ("mnist", "columns", "'none', 'class'"),
    ],
)
def test_data_without_a_condition_refuse_it(name, condition, accepted):
    with pytest.raises(ArgumentError, match=f"condition='{condition}': '{name}' has no such .*: {accepted}$"):
        data.describe(Data(name=name, condition=condition))


@pytest.fixture
def arrays(tmp_path):
    np.save(tmp_path / "train.npy", RNG.standard_normal((12, 4, 6, 2)).astype(np.float32))
    return tmp_path


def of_arrays(place, **settings):
    return data.load(Data(name="arrays", data_dir=str(place), condition="file", **settings))


@pytest.mark.parametrize(
    ("array", "kind", "size"),
    [
        (np.arange(12) % 3, "class", 3),
        (np.linspace(-50, 900, 12), "vector", 1),
        (RNG.normal(5, 2, (12, 4)), "vector", 4),
        (RNG.integers(0, 255, (12, 4, 6)).astype(np.uint8), "image", 1),
        (RNG.normal(5, 2, (12, 4, 6, 3)), "image", 3),
    ],
)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_conditions_of_arrays_follow_their_examples(arrays, array, kind, size, suffix):
    if suffix == "npz":
        np.savez(arrays / "all.npz", train=np.load(arrays / "train.npy"), train_condition=array)
    else:
        np.save(arrays / "train_condition.npy", array)
    dataset = of_arrays(arrays / "all.npz" if suffix == "npz" else arrays)
    facts = dataset.train_conditions.facts[ONLY]
    assert (facts.kind, facts.size) == (kind, size)
    x = np.load(arrays / "train.npy")
    for example in examples(dataset):
        (place,) = (i for i in range(12) if np.array_equal(x[i], example["x"]))
        raw = example["condition"]
        if kind != "class":
            raw = raw * np.array(facts.scale) + np.array(facts.offset)
        np.testing.assert_allclose(raw.ravel(), np.asarray(array[place], float).ravel(), rtol=1e-4, atol=1e-3)


def test_several_parts_have_names_and_own_test_arrays(arrays):
    np.save(arrays / "train_condition_kind.npy", np.arange(12) % 2)
    np.save(arrays / "train_condition_mass.npy", np.linspace(0, 1, 12))
    np.save(arrays / "test.npy", np.load(arrays / "train.npy")[:3])
    with pytest.raises(UserError, match="test_condition_kind: no such array"):
        of_arrays(arrays)
    np.save(arrays / "test_condition_kind.npy", np.zeros(3, int))
    np.save(arrays / "test_condition_mass.npy", np.full(3, 0.5))
    dataset = of_arrays(arrays)
    assert dataset.test_examples[2]["condition"].keys() == {"kind", "mass"}
    np.testing.assert_allclose(dataset.test_examples[2]["condition"]["mass"], 0.0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("train_other", np.zeros(12), "found no array train_condition"),
        ("train_condition", np.arange(12) - 1, "found a negative class"),
        ("train_condition", np.zeros(5, int), "found 5 conditions for 12 examples"),
        ("train_condition", np.zeros(13, int), "found 13 conditions for 12 examples"),
        ("train_condition", np.zeros((12, 0)), "accepted: classes"),
        ("train_condition", 10**6 * (np.arange(12) % 2), "found 2 classes with numbers up to 1000000"),
        ("train_condition_file", np.zeros(12, int), "can't have the name file"),
        (
            "train_condition",
            np.zeros((12, 3, 6)),
            "found images of 3×6 pixels; accepted: the height and the width",
        ),
        ("train_condition", np.ones((12, 2)), "column 0 is constant, 1; leave it out"),
        ("train_condition", np.full(12, "a"), "accepted: classes"),
    ],
)
def test_conditions_of_arrays_that_dont_fit_are_refused(arrays, name, array, message):
    np.save(arrays / f"{name}.npy", array)
    with pytest.raises(UserError, match=message):
        of_arrays(arrays)


def test_a_dropped_condition_is_null_as_often_as_asked():
    drop = drop_condition(0.25)
    example = {"x": jnp.ones(2), "condition": {"digit": jnp.int32(3), "pose": jnp.ones(2)}}
    keys = jax.random.split(jax.random.key(0), 4000)
    found = jax.vmap(drop, (0, None))(keys, example)
    is_dropped = np.asarray(found["condition"]["digit"]) == -1
    # Two-sided: 4 standard deviations of √(p (1 − p)/n).
    assert abs(is_dropped.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)
    np.testing.assert_array_equal(np.isnan(found["condition"]["pose"]).all(axis=1), is_dropped)
    assert set(np.unique(found["condition"]["digit"])) == {-1, 3}
    np.testing.assert_array_equal(found["x"], 1.0)
    # An example's key alone decides.
    again = jax.vmap(drop, (0, None))(keys[5:9], example)
    np.testing.assert_array_equal(again["condition"]["digit"], found["condition"]["digit"][5:9])
