"""The paper's toy experiments, run by their commands and compared with the committed numbers."""

import importlib
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.slow
IMAGES = Path(__file__).parents[2] / "docs" / "images"


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """Run an experiment's command; return the contents of its JSON and of the committed JSON."""

    def run(name):
        directory = tmp_path_factory.mktemp(name)
        module = importlib.import_module(f"experiments.{name}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [name, "--directory", str(directory)])
            module.main()
        with Image.open(directory / f"{name}.png") as image:
            assert min(image.size) > 200
        return (json.loads((place / f"{name}.json").read_text()) for place in (directory, IMAGES))

    return run


def test_loss_of_data_on_a_manifold_converges_only_with_noise(numbers):
    found, committed = numbers("manifold")
    for data in ("moons in 10 dimensions", "digits"):
        without, noisy = found[data]["without noise"], found[data]["with noise"]
        assert abs(noisy["growth"] - 1) < 0.05
        assert without["growth"] > 1.2
        assert without["fluctuation"] > 50 * noisy["fluctuation"]
        assert without["last"] < 10 * found[data]["lowest with noise"]
        assert noisy["last"] > found[data]["lowest with noise"]
        assert noisy["last"] == pytest.approx(committed[data]["with noise"]["last"], rel=0.05)
    moons, digits = found["moons in 10 dimensions"], found["digits"]
    assert moons["lowest with noise"] == pytest.approx(-40_000)
    assert moons["with noise"]["last"] < 0.85 * moons["lowest with noise"]
    # As of 1,797 separate Gaussians in 64 dimensions, −½ · 64 / 10⁻⁴.
    assert digits["lowest with noise"] == pytest.approx(-320_000, rel=0.02)


def test_learned_score_is_wrong_in_regions_without_data(numbers):
    found, committed = numbers("low_density")
    assert found["relative error over the data"] < 0.05
    assert found["relative error where the density is low"] > 0.3
    assert found["relative error between the modes"] > 0.8
    for name, value in found.items():
        assert value == pytest.approx(committed[name], rel=0.3)
    assert 0.5 < found["share of the square where the density is low"] < 0.8


def test_annealing_recovers_the_mode_weights_that_plain_langevin_loses(numbers):
    found, committed = numbers("slow_mixing")
    assert abs(found["exact samples"]["weight"] - 0.8) < 0.025
    assert abs(found["annealed Langevin"]["weight"] - 0.8) < 0.03
    assert abs(found["Langevin"]["weight"] - 0.5) < 0.05
    for name, way in found.items():
        assert all(abs(std - 1) < 0.08 for std in way["std"])
        assert way["weight"] == pytest.approx(committed[name]["weight"], abs=0.02)
