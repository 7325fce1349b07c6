"""A trained run on points with four checkpoints, and a cache directory for the tests."""

import pytest

from ncsn_jax import training
from ncsn_jax.evaluation import Evaluation, against_real


@pytest.fixture(scope="session")
def trained(tiny_config, tmp_path_factory):
    """The directory of a run, and its config: 10 samples a checkpoint, in three parts."""
    settings = Evaluation(num_samples=10, likelihood_examples=6, loss_examples=6, num_neighbours=2)
    kept = tiny_config.training.model_copy(update={"keep_checkpoints": 4})
    config = tiny_config.model_copy(update={"evaluation": settings, "training": kept})
    workdir = tmp_path_factory.mktemp("evaluated") / "run"
    training.train_and_evaluate(config, workdir)
    return workdir, config


@pytest.fixture(autouse=True, scope="session")
def small_and_apart(tmp_path_factory):
    """Keep classifiers for the session, outside the user's cache; compare few pairs of examples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(against_real, "MAX_REFERENCE", 500)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
