import jax
import numpy as np
import pytest

from ncsn_jax import data
from ncsn_jax.data import Data
from ncsn_jax.data.points import POINTS


@pytest.mark.parametrize("name", POINTS)
def test_point_datasets_have_disjoint_splits_of_one_distribution(name):
    dataset = data.load(Data(name=name))
    assert dataset.info == data.describe(Data(name=name)) == data.DatasetInfo(shape=(2,), num_values=None)
    assert dataset.train.shape == (50_000, 2)
    assert dataset.test.shape == (5_000, 2)
    assert dataset.train.dtype == np.float32
    assert np.isfinite(dataset.train).all()
    # The splits are draws of one distribution, and no draw is in both.
    assert not set(map(bytes, dataset.train)) & set(map(bytes, dataset.test))
    error = dataset.train.mean(0) - dataset.test.mean(0)
    assert np.abs(error / dataset.train.std(0)).max() < 4 * np.sqrt(1 / 50_000 + 1 / 5_000)
    np.testing.assert_array_equal(data.load(Data(name=name)).train, dataset.train)


def test_training_batches_of_points_hold_points_of_the_dataset():
    points = data.load(Data(name="two_moons"))
    batch = next(data.training_batches(points.train, batch_size=8, seed=0))
    assert batch["examples"].shape == (4, 2, 2)
    known = set(map(bytes, points.train))
    assert all(bytes(x) in known for x in batch["examples"].reshape(8, 2))


def test_point_datasets_are_unchanged_in_double_precision_mode():
    expected = data.load(Data(name="swiss_roll")).train
    with jax.enable_x64(True):
        found = data.load(Data(name="swiss_roll")).train
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
