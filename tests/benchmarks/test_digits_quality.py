"""The default config makes digits, as `make demo` promises; measured by the benchmark."""

from pathlib import Path

import pytest

from benchmarks.digits_quality import measure
from configs.digits import get_config
from ncsn_jax import training
from ncsn_jax.app import config as run_config
from ncsn_jax.runtime.errors import UserError


def test_measuring_digits_quality_reports_a_missing_run(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        measure(Path(tmp_path))


@pytest.mark.slow
def test_default_digits_config_trains_to_recognisable_digits(tmp_path, data_dir):
    settings = get_config().to_dict()
    settings["data"]["data_dir"] = data_dir
    training.train_and_evaluate(run_config.parse(settings), tmp_path / "run")
    quality = measure(tmp_path / "run")
    assert quality.accuracy > 0.98
    assert quality.class_shares.min() >= 0.04
    # A smaller distance than between exact draws would mean copies of the training images.
    assert 0.03 < quality.distances["the samples"] <= 0.35
