"""The paper's toy experiments by their commands, with what their numbers must show."""

import importlib
import json
import sys

import pytest
from PIL import Image

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """Runs an experiment's command; returns what its JSON holds."""

    def run(name):
        directory = tmp_path_factory.mktemp(name)
        module = importlib.import_module(f"experiments.{name}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [name, "--directory", str(directory)])
            module.main()
        with Image.open(directory / f"{name}.png") as image:
            assert min(image.size) > 200
        return json.loads((directory / f"{name}.json").read_text())

    return run


def test_only_noise_lets_the_loss_of_data_on_a_manifold_converge(numbers):
    found = numbers("manifold")
    for data in ("moons in 10 dimensions", "digits"):
        without, noisy = found[data]["without noise"], found[data]["with noise"]
        assert abs(noisy["growth"] - 1) < 0.05
        assert without["growth"] > 1.2
        assert without["fluctuation"] > 50 * noisy["fluctuation"]
    # The normal directions alone give −½ · 8 / 10⁻⁴; those in the plane, a hundred or so more.
    assert -41_000 < found["moons in 10 dimensions"]["with noise"]["last"] < -35_000
    assert found["moons in 10 dimensions"]["without noise"]["last"] < -500_000


def test_the_learned_score_is_wrong_where_there_are_no_data(numbers):
    found = numbers("low_density")
    assert found["relative error over the data"] < 0.02
    assert 0.1 < found["relative error where the density is low"] < 2
    assert 0.5 < found["share of the square where the density is low"] < 0.8


def test_annealing_recovers_the_weights_that_langevin_dynamics_loses(numbers):
    found = numbers("slow_mixing")
    assert abs(found["exact samples"]["weight"] - 0.8) < 0.025
    assert abs(found["annealed Langevin"]["weight"] - 0.8) < 0.03
    assert abs(found["Langevin"]["weight"] - 0.5) < 0.05
    for way in found.values():
        assert all(abs(std - 1) < 0.08 for std in way["std"])
