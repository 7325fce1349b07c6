"""Arrays as data: files, splits, normalisation, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import data
from ncsn_jax.data import Data, arrays, datasets
from ncsn_jax.runtime.errors import ArgumentError, UserError

RNG = np.random.default_rng(0)
X = (RNG.normal(size=(60, 4, 6, 3)) * [1.0, 1e-3, 50.0] + [0.0, 0.0, 270.0]).astype(np.float32)


def load(place, **settings):
    return data.load(Data(name="arrays", data_dir=str(place), **settings))


@pytest.fixture
def place(tmp_path):
    np.save(tmp_path / "train.npy", X[:50])
    np.save(tmp_path / "test.npy", X[50:])
    return tmp_path


def test_examples_are_the_same_in_memory_and_on_the_disk(place, monkeypatch):
    in_memory = load(place)
    monkeypatch.setattr(datasets, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(arrays, "CHUNK_BYTES", 7 * X[0].nbytes)
    on_disk = load(place)
    assert isinstance(in_memory.train, np.ndarray)
    assert not isinstance(on_disk.train, np.ndarray)
    for split in ("train", "test"):
        examples = getattr(on_disk, split)
        np.testing.assert_array_equal([examples[i] for i in range(len(examples))], getattr(in_memory, split))
    np.testing.assert_array_equal(in_memory.train, X[:50])
    np.testing.assert_allclose(on_disk.facts.scale, in_memory.facts.scale, rtol=1e-6)


@pytest.mark.parametrize(("name", "write"), [("a.npz", np.savez), ("a.h5", None)])
def test_one_file_holds_both_splits(name, write, tmp_path):
    path = tmp_path / name
    if write is None:
        with pytest.importorskip("h5py").File(path, "w") as file:
            file["train"], file["test"] = X[:50], X[50:]
    else:
        write(path, train=X[:50], test=X[50:])
    found = load(path)
    np.testing.assert_array_equal(found.train, X[:50])
    np.testing.assert_array_equal(found.test, X[50:])


def test_a_hash_of_the_place_splits_examples(tmp_path):
    """A split doesn't change when examples are added at the end."""
    numbers = np.arange(200.0)[:, None] * [1.0, -2.0]
    found = data.from_arrays(numbers, normalize="none", test_fraction=0.2)
    more = data.from_arrays(np.concatenate([numbers, numbers]), normalize="none", test_fraction=0.2)
    np.testing.assert_array_equal(more.test[: len(found.test)], found.test)
    assert abs(len(found.test) / 200 - 0.2) < 4 * np.sqrt(0.16 / 200)
    assert sorted([*found.train[:, 0], *found.test[:, 0]]) == list(range(200))


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "uint8"])
@pytest.mark.parametrize("shape", [(4, 6, 3), (4, 6), (5,)])
def test_standard_and_range_are_of_each_channel(shape, dtype):
    x = (RNG.random((40, *shape)) * 100).astype(dtype)
    found = data.from_arrays(x[:30], x[30:])
    expected = (*shape, 1) if len(shape) == 2 else shape
    assert found.info.shape == expected
    assert found.train.dtype == np.float32
    normalized = jax.vmap(data.preprocessing(found.info), (None, 0))(jax.random.key(0), found.train)
    flat = np.asarray(normalized, np.float64).reshape(-1, expected[-1])
    np.testing.assert_allclose(flat.mean(0), 0.0, atol=1e-4)
    np.testing.assert_allclose(flat.std(0), 1.0, rtol=1e-4)
    # Samples have the units of the data.
    np.testing.assert_allclose(found.info.transform.inverse(normalized), found.train, rtol=1e-3, atol=1e-2)
    ranged = data.from_arrays(x[:30], x[30:], normalize="range")
    if dtype != "uint8" or len(shape) > 0:
        forward = np.asarray(ranged.info.transform.forward(jnp.asarray(ranged.train))).reshape(
            -1, expected[-1]
        )
        np.testing.assert_allclose(forward.min(0), 0.0, atol=1e-5)
        np.testing.assert_allclose(forward.max(0), 1.0, atol=1e-5)


def test_images_of_8_bits_keep_their_values_without_normalization():
    x = RNG.integers(0, 17, (40, 4, 4, 1), dtype=np.uint8)
    x[0, 0, 0, 0] = 16
    found = data.from_arrays(x[:30], x[30:], normalize="none")
    assert (found.train.dtype, found.info.num_values) == (np.uint8, 17)
    assert (
        data.from_arrays(X[:30], X[30:], normalize="none").info.transform
        is data.describe(Data(name="digits")).transform
    )


def test_measured_facts_are_taken_from_the_settings(place):
    facts = load(place).facts
    np.save(place / "train.npy", X[:50] * 2)
    again = load(place, **facts._asdict())
    assert again.facts == facts
    assert data.describe(Data(name="arrays", data_dir="/nowhere", **facts._asdict())) == again.info


NOT_FINITE = X.copy()
NOT_FINITE[7, 1, 2, 0] = np.inf
CONSTANT = np.where(np.arange(3) == 1, 5.0, X)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "found no array named train; accepted: a directory with train.npy"),
        ({"train": X[:0]}, r"train: found float32 of the shape \(0, 4, 6, 3\); accepted: real numbers"),
        ({"train": X[..., None]}, r"train: found float32 of the shape \(60, 4, 6, 3, 1\); accepted"),
        ({"train": X * 1j}, "train: found complex64 of the shape"),
        ({"train": NOT_FINITE}, "train: example 7 holds numbers that aren't finite; leave it out"),
        ({"train": X, "test": NOT_FINITE}, "test: example 7 holds numbers that aren't finite"),
        ({"train": CONSTANT}, "train: channel 1 is constant in float32, from 5 to 5; leave it out"),
        (
            {"train": X, "test": X[:, :2]},
            r"test: found examples of the shape \(2, 6, 3\); accepted: the shape",
        ),
        ({"train": X[:1]}, "train: found 1 example; accepted: at least 2, or an array test"),
        ({"train": np.asfortranarray(X)}, "found an array in Fortran order"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(files, message, tmp_path):
    for name, array in files.items():
        np.save(tmp_path / f"{name}.npy", array)
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_files_and_settings_that_do_not_fit_are_refused(place):
    (place / "damaged.npz").write_bytes(b"PK")
    for settings, message in (
        ({"data_dir": str(place / "nothing")}, "nothing: no such file or directory; accepted: a directory"),
        ({"data_dir": str(place / "damaged.npz")}, r"damaged\.npz: can't be read as an array"),
        ({"data_dir": None}, "data_dir=None: 'arrays' needs the directory or the file"),
        ({"data_dir": "gs://bucket/a"}, "'arrays' reads local files"),
        ({"image_size": 8}, "image_size=8: 'arrays' are arrays of their final size"),
        (
            {"transform": "logit"},
            "transform='logit': 'arrays' are images only of 8 bits with normalize='none'",
        ),
        ({"corrupt": "skip"}, "corrupt='skip': 'arrays' is not a folder of images"),
    ):
        with pytest.raises((UserError, ArgumentError), match=message):
            data.load(Data(**{"name": "arrays", "data_dir": str(place), **settings}))
    with pytest.raises(ArgumentError, match="normalize='none': 'digits' is not an array"):
        data.describe(Data(name="digits", normalize="none"))
